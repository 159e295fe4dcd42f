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
