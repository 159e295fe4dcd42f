"""Workers with clocks of their own agree on when to speak, on the mean loss, and on stopping."""

import time

import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.strategies import Strategy
from disttrain.training.agreement import Agreement


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


class Rounds(Alone):
    """Facts are said in every step, sent when a round of 4 closes, and heard a round later."""

    agrees_by_round = True

    def __init__(self):
        super().__init__()
        self.steps, self.said, self.sent, self.landed = 0, None, None, None

    def after_step(self):
        self.steps += 1
        if self.steps % 4 == 0:
            self.landed, self.sent = self.sent, self.said

    def say(self, facts):
        self.said = facts

    def hear(self):
        landed, self.landed = self.landed, None
        return landed


def test_by_rounds_nobody_is_asked_at_once_and_the_round_loss_is_of_what_was_sent_together():
    strategy = Rounds()
    agreement = Agreement(strategy, log_every=5, last_step=20)
    heard = []
    for step in range(1, 21):
        strategy.after_step()
        agreement.step(step, float(step), stop_requested=step >= 6)
        heard.append((agreement.round_loss, agreement.stop))
    assert not strategy.asked
    assert heard[6] == (None, False)
    assert heard[7] == (2.0, False)  # steps 1 to 3, whose losses were known when the first round closed at step 4
    assert heard[11] == (5.5, True)  # steps 4 to 7; the request of step 6 went along
    assert heard[15] == (9.5, True)
    assert agreement.loss.take() == 10.5  # this worker's own, of all steps since it was last taken


def test_by_rounds_a_loss_that_is_not_finite_spoils_no_later_round():
    strategy = Rounds()
    agreement = Agreement(strategy, log_every=5, last_step=20)
    for step in range(1, 13):
        strategy.after_step()
        agreement.step(step, float("nan") if step == 2 else 1.0, stop_requested=False)
    assert agreement.round_loss == 1.0
