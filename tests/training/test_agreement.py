"""Workers with clocks of their own agree on when to speak, on the mean loss, and on stopping."""

import itertools
import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.strategies import Strategy
from disttrain.training.agreement import Agreement
from disttrain.worlds.in_flight import InFlight
from disttrain.worlds.traffic import Traffic


class Alone(Strategy):
    """A strategy without communication that counts how often it is asked."""

    def __init__(self):
        self.x, self.asked = torch.zeros(1, 1), []

    def agree(self, values):
        self.asked.append(values)
        return values


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.integers(1, 7))
def test_the_logged_loss_is_the_mean_of_exactly_the_steps_since(losses, log_every):
    agreement, since = Agreement(Alone(), log_every, 1000), []
    for step, loss in enumerate(losses, 1):
        agreement.step(step, loss, stop_requested=False)
        since.append(loss)
        if step % log_every == 0:
            assert abs(agreement.loss.take() - sum(since) / len(since)) < 1e-9
            since = []


def test_fast_steps_exchange_seldom():
    strategy = Alone()
    agreement = Agreement(strategy, log_every=50, last_step=1000)
    for step in range(1, 501):
        agreement.step(step, 0.0, stop_requested=False)
    assert len(strategy.asked) <= 12  # the first, and those at multiples of 50


def test_the_last_step_is_exchanged_wherever_it_falls():
    agreement = Agreement(Alone(), log_every=50, last_step=83)
    for step in range(1, 84):
        agreement.step(step, float(step), stop_requested=False)
    assert agreement.own.count == 0


def talks_at_its_own_speed(world):
    """Each worker has another step time, and one is told to stop at step 20: all hear of it in the same step."""
    strategy = Alone()
    strategy.agree = world.mean
    agreement, exchanges = Agreement(strategy, log_every=1000, last_step=1000), 0
    for step in range(1, 400):
        time.sleep(0.002 * (1 + world.rank))
        before = agreement.own.count
        agreement.step(step, float(world.rank), stop_requested=world.rank == 2 and step >= 20)
        exchanges += agreement.own.count < before + 1
        if agreement.stop:
            return step, agreement.loss.take(), exchanges
    return None


def test_a_stop_request_reaches_all_workers_in_the_same_step(workers):
    results = workers(3, talks_at_its_own_speed)
    assert results[0] is not None
    assert results == [results[0]] * 3
    step, loss, exchanges = results[0]
    assert 20 <= step < 400
    assert loss == 1.0
    assert exchanges < step / 10


class Late(Alone):
    """Facts are sent at once, and taken later."""

    agrees_late = True

    def __init__(self, lost_at=None):
        super().__init__()
        self.sent, self.lost_at = [], lost_at

    def agree_later(self, values):
        self.sent.append(values)
        flight = InFlight(Traffic(), self.arrive)
        flight.run((values,), debug=False)
        return flight

    def arrive(self, values):
        if len(self.sent) == self.lost_at:
            raise RuntimeError("worker 1 was lost")
        return values.clone()


def late_run(monkeypatch, strategy, losses, stop_from=10**6, last_step=100):
    """An agreement after each of some steps of a second; its mean loss and its stop flag after each."""
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 2)  # asked twice in a step that sends
    agreement, heard = Agreement(strategy, 1000, last_step), []
    for step, loss in enumerate(losses, 1):
        next(clock), next(clock)
        agreement.step(step, loss, stop_requested=step >= stop_from)
        heard.append((agreement.mean_loss, agreement.stop))
    return agreement, heard


def test_late_facts_make_nobody_wait_and_are_the_mean_of_what_was_sent_together(monkeypatch):
    strategy = Late()
    agreement, heard = late_run(monkeypatch, strategy, range(1, 13), stop_from=4, last_step=12)
    assert not strategy.asked
    assert heard[0] == (None, False)
    assert heard[1] == (1.0, False)  # what step 1 sent; then every few seconds
    sent = [each[0].tolist()[:3] for each in strategy.sent]
    assert sum(total for total, *_ in sent) + agreement.own.total == sum(range(1, 13))  # every loss is sent once
    asked = next(number for number, (_, _, stop) in enumerate(sent) if stop)
    assert len(sent) == asked + 1  # where it is heard all stop, and nothing is sent any more
    assert heard[-1][1]
    assert agreement.loss.take() == 6.5  # this worker's own, of all steps


def test_late_facts_that_are_not_finite_are_forgotten(monkeypatch):
    _, heard = late_run(monkeypatch, Late(), [float("nan"), *[1.0] * 11])
    assert math.isnan(heard[1][0])
    assert heard[-1][0] == 1.0


def test_a_lost_worker_is_noticed_in_the_next_step(monkeypatch):
    strategy = Late(lost_at=3)
    with pytest.raises(RuntimeError, match="worker 1 was lost"):
        late_run(monkeypatch, strategy, [0.0] * 20)
    assert len(strategy.sent) == 3


def test_no_loss_is_lost_for_the_record_where_waiting_ends():
    strategy = Alone()
    agreement = Agreement(strategy, log_every=10, last_step=1000)
    for step in range(1, 11):
        if step == 9:  # the warm-up is over
            strategy.__class__ = Late
            strategy.sent, strategy.lost_at = [], None
        agreement.step(step, float(step), stop_requested=False)
    assert agreement.loss.take() == 5.5
