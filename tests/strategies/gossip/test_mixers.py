"""The other gossip strategies against their formulas, and against what they are in special cases."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.strategies.gossip import DPSGD, AlwaysConfig, GradientTracking, NoLoCo, QuasiGlobalMomentum, SometimesConfig
from disttrain.strategies.local_updates import DiLoCo, OuterStep
from disttrain.topology import CompleteConfig, RingConfig
from tests.reference.gossip import gradient_tracking, noloco, quasi_global
from tests.strategies.gossip.dense import TOPOLOGIES, matrices
from tests.strategies.local_updates.drive import GAMMA, begun, close, quadratic, run, start

talk = st.sampled_from([AlwaysConfig(), SometimesConfig(probability=0.4)])
D, STEPS = 4, 10


def updates_of(gradient):
    return lambda step, x: GAMMA * np.array([gradient(worker, step, row) for worker, row in enumerate(x)])


@given(st.sampled_from(TOPOLOGIES), talk, st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**20))
def test_quasi_global_momentum(topology, communication, n, period, seed):
    gradient, x0 = quadratic(seed, n, D), start(seed, D)
    strategy = QuasiGlobalMomentum(0.8, 0.6, topology=topology, communication=communication, period=period)
    trace, result = run(strategy, gradient, x0, n, STEPS)
    expected = quasi_global(x0, matrices(strategy, STEPS), updates_of(gradient), period, 0.8, 0.6)
    assert close(trace, expected)
    assert close(result, expected[-1].mean(0))


@given(st.sampled_from(TOPOLOGIES), talk, st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**20))
def test_noloco(topology, communication, n, period, seed):
    gradient, x0 = quadratic(seed, n, D), start(seed, D)
    strategy = NoLoCo(0.7, 0.5, 0.6, topology=topology, communication=communication, period=period)
    trace, result = run(strategy, gradient, x0, n, STEPS)
    expected = noloco(x0, matrices(strategy, STEPS), updates_of(gradient), period, 0.5, 0.7, 0.6)
    assert close(trace, expected)
    assert close(result, expected[-1].mean(0))


def track(strategy, gradient, x0, n):
    """Parameters after every step, and what the optimizer stepped by, ``[steps, n, d]``."""
    begun(strategy, n, x0)
    trace, estimates = [], []
    for step in range(1, STEPS + 1):
        x = strategy.x
        own = torch.from_numpy(np.array([gradient(worker, step, row.numpy()) for worker, row in enumerate(x)]))
        (estimate,) = strategy.reduce(strategy.layout.units, [own])
        estimates.append(estimate.numpy().copy())
        assert strategy.before_step()
        x -= GAMMA * estimate
        strategy.after_step()
        trace.append(x.numpy().copy())
    return np.array(trace), np.array(estimates)


@given(st.sampled_from(TOPOLOGIES), talk, st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**20))
def test_gradient_tracking(topology, communication, n, period, seed):
    gradient, x0, own = quadratic(seed, n, D), start(seed, D), []
    strategy = GradientTracking(topology=topology, communication=communication, period=period)
    trace, estimates = track(strategy, gradient, x0, n)

    def gradients(step, x):
        own.append(np.array([gradient(worker, step, row) for worker, row in enumerate(x)]))
        return own[-1]

    expected, expected_estimates = gradient_tracking(x0, matrices(strategy, STEPS), gradients, GAMMA)
    assert close(trace, expected)
    assert close(estimates, expected_estimates)
    assert close(estimates.mean(1), np.array(own).mean(1))


def test_a_gradient_that_is_not_finite_is_not_tracked():
    strategy = begun(GradientTracking(topology=RingConfig()), 3, np.zeros(D))
    units, g = strategy.layout.units, torch.ones(3, D, dtype=torch.float64)
    strategy.reduce(units, [g])
    bad = 2 * g
    bad[1, 2] = float("inf")
    (estimate,) = strategy.reduce(units, [bad])
    assert not estimate[1].isfinite().all()
    assert torch.equal(estimate[0], bad[0])
    (after,) = strategy.reduce(units, [3 * g])
    assert torch.equal(after, 3 * g)


def test_without_momentum_and_with_everybody():
    gradient, x0 = quadratic(5, 5, D), start(5, D)
    plain = run(DPSGD("adapt_then_combine", topology=RingConfig(), period=2), gradient, x0, 5, STEPS)
    quasi = run(QuasiGlobalMomentum(0.0, 0.5, topology=RingConfig(), period=2), gradient, x0, 5, STEPS)
    assert all(close(*pair) for pair in zip(plain, quasi, strict=True))
    slowmo = run(DiLoCo(2, OuterStep(0.7, 0.5)), gradient, x0, 5, STEPS)
    noloco = run(NoLoCo(0.7, 0.5, 0.6, topology=CompleteConfig(), period=2), gradient, x0, 5, STEPS)
    assert all(close(*pair) for pair in zip(slowmo, noloco, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuasiGlobalMomentum(1.0, topology=RingConfig()), "less than 1, got 1.0 and 0.9"),
        (lambda: NoLoCo(0.0, topology=RingConfig()), "must be positive, .* got 0.0, 0.7 and 0.5"),
    ],
)
def test_arguments_out_of_bounds(make, message):
    with pytest.raises(ValueError, match=message):
        make()
