"""Stochastic gradient push against its formula of numerators and weights, and against what it is where nobody needs weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.strategies.gossip import (
    DPSGD,
    AlwaysConfig,
    DPSGDConfig,
    SometimesConfig,
    StochasticGradientPush,
    StochasticGradientPushConfig,
    WindowConfig,
)
from disttrain.topology import RandomPushConfig
from tests.reference.gossip import gradient_push
from tests.strategies.gossip.dense import TOPOLOGIES
from tests.strategies.local_updates.drive import GAMMA, begun, close, local_step, quadratic, recorded, run, start

ONE_WAY = [RandomPushConfig(k=1), RandomPushConfig(k=2)]
SCHEDULES = [AlwaysConfig(), SometimesConfig(probability=0.4), WindowConfig(start=3, stop=7, outside=0.3)]


def shares(strategy, steps):
    """P of every step, the first one before any, from the links alone: what is not pushed is kept."""
    matrices = []
    for step in range(steps + 1):
        strategy._steps.fill_(step)
        mixing, n = strategy.round_due(), strategy.world.size
        P = np.zeros((n, n))
        if mixing is not None:
            for receiver, sender, weight in zip(*mixing.links, strict=True):
                P[receiver, sender] = weight
        matrices.append(P + np.diag(1 - P.sum(0)))
    return matrices


@settings(max_examples=60)
@given(
    topology=st.sampled_from(TOPOLOGIES + ONE_WAY),
    communication=st.sampled_from(SCHEDULES),
    n=st.integers(1, 9),
    period=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
def test_it_is_the_formula_of_the_paper(topology, communication, n, period, seed):
    d, steps = 4, 10
    gradient, x0 = quadratic(seed, n, d), start(seed, d)
    strategy = StochasticGradientPush(topology=topology, communication=communication, period=period)
    trace, result = run(strategy, gradient, x0, n, steps)
    weight = strategy.local["weight"][:, 0].numpy().copy()

    def updates(step, z):
        return GAMMA * np.array([gradient(worker, step, row) for worker, row in enumerate(z)])

    expected, weights = gradient_push(x0, shares(strategy, steps), updates)
    assert close(trace, expected)
    assert close(weight, weights[-1])
    assert close(result, (weights[-1][:, None] * expected[-1]).sum(0) / n)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_where_rounds_are_doubly_stochastic_it_is_dpsgd(topology):
    gradient, x0 = quadratic(2, 6, 4), start(2, 4)
    strategy = StochasticGradientPush(topology=topology, period=2)
    mine = run(strategy, gradient, x0, 6, 12)
    theirs = run(DPSGD("adapt_then_combine", topology=topology, period=2), gradient, x0, 6, 12)
    assert all(close(*pair) for pair in zip(mine, theirs, strict=True))
    assert close(strategy.local["weight"].numpy(), np.ones((6, 1)))


@settings(max_examples=15)
@given(st.sampled_from(ONE_WAY), st.sampled_from(SCHEDULES[:2]), st.integers(2, 9), st.integers(0, 2**20))
def test_mass_stays_and_every_update_counts_once(topology, communication, n, seed):
    d, steps = 3, 15
    gradient, x0 = recorded(seed, n, steps, d), start(seed, d)
    strategy = begun(StochasticGradientPush(topology=topology, communication=communication), n, x0)
    given_away = np.zeros(d)
    for step in range(1, steps + 1):
        local_step(strategy, gradient, step)
        given_away += GAMMA * np.mean([gradient(worker, step, None) for worker in range(n)], axis=0)
        weight = strategy.local["weight"].numpy()
        assert (weight > 0).all()
        assert weight.sum() == pytest.approx(n, abs=1e-12)
        assert close((weight * strategy.x.numpy()).mean(0), x0 - given_away)
    assert close(strategy.finish()[0].numpy(), x0 - given_away)


@pytest.mark.parametrize("communication", SCHEDULES[:2])
@pytest.mark.parametrize("topology", ONE_WAY)
def test_models_come_to_the_mean_of_all(topology, communication):
    apart = np.random.default_rng(0).standard_normal((8, 5))

    def only_at_first(worker, step, x):
        return apart[worker] if step == 1 else np.zeros_like(x)

    strategy = StochasticGradientPush(topology=topology, communication=communication)
    trace, _ = run(strategy, only_at_first, np.zeros(5), 8, 160)
    assert np.abs(trace[-1] + GAMMA * apart.mean(0)).max() < 1e-9


def test_equal_models_stay_equal_to_the_last_bit():
    strategy = StochasticGradientPush(topology=RandomPushConfig(k=1))
    strategy = begun(strategy, 7, start(0, 5), dtype=torch.float32)
    first = strategy.x.clone()
    for step in range(1, 30):
        local_step(strategy, lambda worker, step, x: np.zeros_like(x), step)
    assert torch.equal(strategy.x, first)
    assert (strategy.local["weight"] != 1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_exact_whatever_the_parameters_are(dtype):
    strategy = begun(StochasticGradientPush(topology=RandomPushConfig(k=1)), 6, np.zeros(5), dtype=dtype)
    for _ in range(200):
        strategy.before_step()
        strategy.x += torch.full_like(strategy.x, 2.0**-8)
        strategy.after_step()
        assert strategy.local["weight"].sum() == pytest.approx(6, abs=1e-12)


def test_worker_0_alone_if_nothing_is_merged():
    gradient, x0 = quadratic(0, 4, 3), start(0, 3)
    strategy = StochasticGradientPush(topology=RandomPushConfig(k=1), merge=False)
    trace, own = run(strategy, gradient, x0, 4, 6)
    assert close(own, trace[-1][0])
    assert strategy.metrics["push_weight"] == strategy.local["weight"][0]


def test_what_is_sent_is_model_and_weight_to_each_that_is_pushed_to():
    strategy = begun(StochasticGradientPush(topology=RandomPushConfig(k=2)), 6, np.zeros(5), dtype=torch.float32)
    for step in range(1, 9):
        local_step(strategy, quadratic(0, 6, 5), step)
    assert strategy.message_bytes == 5 * 4 + 8
    assert strategy.world.traffic.payload_bytes == 8 * 28
    assert strategy.world.traffic.wire_bytes == 8 * 28 * 2
    assert strategy.metrics["sent_by_all"] == 8 * 6 * 2
    assert "random_push, after every step 56 bytes per worker" in strategy.description


def test_now_and_then_links_are_drawn_one_by_one():
    strategy = StochasticGradientPush(topology=RandomPushConfig(k=1), communication=SometimesConfig(probability=0.5))
    begun(strategy, 8, np.zeros(2))
    said = set()
    for step in range(1, 40):
        strategy._steps.fill_(step)
        mixing = strategy.round_due()
        said.add(0 if mixing is None else len(mixing.links.receivers))
    assert len(said) > 3


def test_a_worker_whose_parameters_are_not_finite_ends_it():
    def explodes(worker, step, x):
        return np.full_like(x, np.inf) if (worker, step) == (1, 3) else np.zeros_like(x)

    with pytest.raises(RuntimeError, match="diverged: after 3 steps some worker's parameters are not finite any more"):
        run(StochasticGradientPush(topology=RandomPushConfig(k=1)), explodes, np.zeros(3), 4, 6)


def test_strategies_without_weights_refuse_what_does_not_keep_the_mean():
    message = r"under random_push, 5 workers lose the mean.*; take random_matching, .*; or strategy stochastic_gradient_push"
    with pytest.raises(ValueError, match=message):
        begun(DPSGD(topology=RandomPushConfig(k=1)), 5, np.zeros(3))
    with pytest.raises(ValueError, match=message):
        DPSGDConfig(topology=RandomPushConfig(k=1)).check_world(5)
    StochasticGradientPushConfig().check_world(5)
