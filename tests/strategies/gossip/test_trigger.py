"""Talking when it is called for: the formula, both ends alike, and a consensus distance that stays where it is wanted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.config import ConfigError, RunConfig
from disttrain.consensus import consensus_distance
from disttrain.strategies.gossip import DPSGD, DPSGDConfig, NoLoCoConfig, QuasiGlobalMomentumConfig, TriggeredConfig
from disttrain.strategies.gossip.trigger import Known, Trigger, squared_length
from disttrain.topology import BaseGraphConfig, OnePeerExponentialConfig, RandomMatchingConfig, RingConfig
from tests.reference.gossip import triggered
from tests.strategies.gossip.dense import TOPOLOGIES
from tests.strategies.local_updates.drive import GAMMA, begun, close, quadratic, recorded, run, start

SYMMETRIC = [each for each in TOPOLOGIES if each.build(5).symmetric]


def updates_of(gradient):
    return lambda step, x: GAMMA * np.array([gradient(worker, step, row) for worker, row in enumerate(x)])


@given(
    topology=st.sampled_from(SYMMETRIC),
    threshold=st.floats(0.01, 0.6),
    relative=st.booleans(),
    n=st.integers(2, 9),
    seed=st.integers(0, 2**20),
)
def test_it_is_the_formula(topology, threshold, relative, n, seed):
    gradient, x0, steps = quadratic(seed, n, 4), start(seed, 4), 10
    strategy = DPSGD(
        "adapt_then_combine", topology=topology, communication=TriggeredConfig(threshold=threshold, relative=relative)
    )
    trace, result = run(strategy, gradient, x0, n, steps)
    W = [strategy.topology.matrix(t) for t in range(steps)]
    expected, spoke = triggered(x0, W, updates_of(gradient), threshold, relative)
    assert close(trace, expected)
    assert close(result, expected[-1].mean(0))
    assert strategy.metrics["spoken"] == spoke[:, 0].mean()


@given(st.sampled_from(SYMMETRIC), st.integers(2, 9), st.integers(0, 2**20))
def test_the_sum_is_kept_because_both_ends_decide_alike(topology, n, seed):
    communication = TriggeredConfig(threshold=0.2, relative=False)
    gradient = recorded(seed, n, 12, 5)
    trace, _ = run(DPSGD(topology=topology, communication=communication), gradient, np.zeros(5), n, 12)  # in debug mode
    alone = -GAMMA * np.cumsum([np.mean([gradient(w, t, None) for w in range(n)], axis=0) for t in range(1, 13)], axis=0)
    assert np.abs(trace.mean(1) - alone).max() < 1e-13


def test_a_low_threshold_is_always_and_a_high_one_never():
    gradient, x0 = quadratic(1, 6, 4), start(1, 4)
    always, _ = run(DPSGD(topology=RingConfig()), gradient, x0, 6, 8)
    low = DPSGD(topology=RingConfig(), communication=TriggeredConfig(threshold=1e-9))
    assert np.array_equal(run(low, gradient, x0, 6, 8)[0], always)
    assert low.metrics["spoken"] == 1
    high = DPSGD(topology=RingConfig(), communication=TriggeredConfig(threshold=1e9), merge=False)
    run(high, gradient, x0, 6, 8)
    assert high.metrics["spoken"] == 0
    assert high.world.traffic.wire_bytes == 8 * 2 * 8, "8 bytes to each of two peers in each of 8 rounds"


def test_bytes_are_those_that_were_sent():
    gradient, x0 = recorded(2, 6, 40, 5), np.zeros(5)
    strategy = DPSGD(topology=RandomMatchingConfig(), communication=TriggeredConfig(threshold=0.4, relative=False), merge=False)
    run(strategy, gradient, x0, 6, 40)
    spoken = strategy.metrics["spoken"]
    assert 0.1 < spoken < 0.9
    assert strategy.world.traffic.wire_bytes == 40 * 8 + round(40 * spoken) * 5 * 8


@pytest.mark.parametrize("topology", [RandomMatchingConfig(), BaseGraphConfig(k=1), RingConfig()])
@pytest.mark.parametrize("threshold", [1.5, 3.0])
def test_workers_that_walk_at_random_stay_as_near_as_was_wanted(topology, threshold):
    n, d, steps = 8, 50, 200
    strategy = DPSGD("adapt_then_combine", topology=topology, communication=TriggeredConfig(threshold=threshold, relative=False))
    trace, _ = run(strategy, recorded(4, n, steps, d), np.zeros(d), n, steps)
    measured = np.array([consensus_distance(torch.from_numpy(x)) for x in trace[50:]])
    assert 0.7 * threshold < np.sqrt(measured.mean()) < 1.3 * threshold, "and where nobody talks it would be 10 at the end"
    assert strategy.metrics["spoken"] < 0.4


def test_an_estimate_is_right_on_average_where_workers_go_their_own_ways():
    n, d = 64, 400
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trigger = Trigger(1.0, relative=False)
    before = trigger.estimate(x, Known(torch.zeros_like(x), torch.zeros(n, 1, dtype=torch.float64)), n)
    assert float(before.mean()) == pytest.approx(consensus_distance(x), rel=0.02)
    for topology in (RandomMatchingConfig(), RingConfig()):
        mixing = topology.build(n).round(0)
        mixed = torch.from_numpy(mixing.matrix()) @ x
        distance = (x[mixing.senders] - x[:, None]).square().sum(-1).mean(1, keepdim=True)
        known = trigger.measured(mixed, distance, mixing.weights, Known(x, before), n)
        assert float(known.residual.mean()) == pytest.approx(consensus_distance(mixed), rel=0.05)


@given(st.integers(1, 5000), st.integers(0, 2**20))
def test_a_length_does_not_depend_on_other_rows(d, seed):
    x = torch.randn(3, d, generator=torch.Generator().manual_seed(seed))
    together = squared_length(x)
    assert all(torch.equal(squared_length(row[None]), one[None]) for row, one in zip(x, together, strict=True))
    assert torch.allclose(together, x.double().square().sum(1, keepdim=True), rtol=1e-5)


def test_nor_does_that_of_a_large_model():
    x = torch.randn(2, 3_000_001, generator=torch.Generator().manual_seed(0))
    assert torch.equal(squared_length(x)[1:], squared_length(x[1:].clone()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPSGDConfig(communication=TriggeredConfig(), delay=1, mixing_rate=0.5), "so delay must be 0, got 1"),
        (lambda: NoLoCoConfig(communication=TriggeredConfig()), "strategies in which workers go where mixing takes them"),
        (lambda: TriggeredConfig(threshold=0.0), "greater than 0"),
        (
            lambda: begun(DPSGD(topology=OnePeerExponentialConfig(), communication=TriggeredConfig()), 4, np.zeros(2)),
            "lets both ends of a pair decide, and one_peer_exponential is one-way",
        ),
        (
            lambda: RunConfig(
                strategy=QuasiGlobalMomentumConfig(topology=OnePeerExponentialConfig(), communication=TriggeredConfig())
            ).check_world(4),
            "lets both ends of a pair decide, and one_peer_exponential is one-way",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        make()
