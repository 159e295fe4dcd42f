"""D-PSGD against its formula in dense matrices, and against what it is on a complete graph."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.strategies.gossip import DPSGD, AlwaysConfig, SometimesConfig, WindowConfig
from disttrain.topology import CompleteConfig, RandomMatchingConfig, RingConfig
from tests.reference.gossip import dpsgd
from tests.strategies.gossip.dense import TOPOLOGIES, matrices
from tests.strategies.local_updates.drive import GAMMA, close, quadratic, run, start

ORDERS = ["combine_while_adapt", "adapt_then_combine"]


@given(
    topology=st.sampled_from(TOPOLOGIES),
    communication=st.sampled_from([AlwaysConfig(), SometimesConfig(probability=0.4), WindowConfig(start=3, stop=7, outside=0.3)]),
    n=st.integers(1, 9),
    period=st.integers(1, 3),
    order=st.sampled_from(ORDERS),
    seed=st.integers(0, 2**20),
)
def test_it_is_the_formula_of_the_paper(topology, communication, n, period, order, seed):
    d, steps = 4, 10
    gradient, x0 = quadratic(seed, n, d), start(seed, d)
    strategy = DPSGD(order, topology=topology, communication=communication, period=period)
    trace, result = run(strategy, gradient, x0, n, steps)
    W = matrices(strategy, steps)

    def updates(step, x):
        return GAMMA * np.array([gradient(worker, step, row) for worker, row in enumerate(x)])

    expected = dpsgd(x0, W, updates, order)
    assert close(trace, expected[:-1])
    assert close(result, expected[-1].mean(0))


@pytest.mark.parametrize("n", [2, 5, 8])
def test_on_a_complete_graph_adapt_then_combine_is_averaging(n):
    gradient, x0 = quadratic(3, n, 4), start(3, 4)
    trace, result = run(DPSGD("adapt_then_combine", topology=CompleteConfig()), gradient, x0, n, 8)
    x = x0
    for step in range(1, 9):
        x = x - GAMMA * np.mean([gradient(worker, step, x) for worker in range(n)], axis=0)
        assert close(trace[step - 1], np.repeat(x[None], n, axis=0))
    assert close(result, x)


@given(st.sampled_from(TOPOLOGIES), st.integers(2, 12), st.integers(0, 2**20))
def test_mixing_keeps_the_sum_and_brings_workers_closer(topology, n, seed):
    rng = np.random.default_rng(seed)
    apart = rng.standard_normal((n, 5))

    def only_at_first(worker, step, x):
        return apart[worker] if step == 1 else np.zeros_like(x)

    trace, _ = run(
        DPSGD("adapt_then_combine", topology=topology, communication=SometimesConfig(probability=0.7)),
        only_at_first,
        np.zeros(5),
        n,
        12,
    )
    means = trace.mean(1)
    assert np.abs(means - means[0]).max() < 1e-14
    spread = np.square(trace - means[:, None]).sum((1, 2))
    assert (np.diff(spread) <= 1e-14).all()


def test_the_result_is_merged_only_if_that_is_wanted():
    gradient, x0 = quadratic(0, 4, 3), start(0, 3)
    trace, own = run(DPSGD(topology=RingConfig(), communication=WindowConfig(start=2, stop=3), merge=False), gradient, x0, 4, 6)
    assert close(own, trace[-1][0])
    _, merged = run(DPSGD(topology=RingConfig(), communication=WindowConfig(start=2, stop=3)), gradient, x0, 4, 6)
    assert close(merged, trace[-1].mean(0))


def test_arguments_out_of_bounds():
    with pytest.raises(ValueError, match="period must be at least 1, got 0"):
        DPSGD(topology=RingConfig(), period=0)
    with pytest.raises(ValueError, match="order must be one of combine_while_adapt, adapt_then_combine, got 'mix'"):
        DPSGD("mix", topology=RingConfig())


def test_a_worker_whose_parameters_are_not_finite_ends_it():
    def explodes(worker, step, x):
        return np.full_like(x, np.inf) if (worker, step) == (1, 3) else np.zeros_like(x)

    with pytest.raises(RuntimeError, match="diverged: after 3 steps some worker's parameters are not finite any more"):
        run(DPSGD(topology=RingConfig()), explodes, np.zeros(3), 4, 6)


def test_one_worker_talks_to_nobody():
    gradient, x0 = quadratic(0, 1, 3), start(0, 3)
    strategy = DPSGD(topology=RandomMatchingConfig())
    run(strategy, gradient, x0, 1, 4)
    assert strategy.world.traffic.collectives == torch.tensor(1)  # the merge
