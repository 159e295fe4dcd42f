"""Flows that are added late: the formula, the sum that is kept, and which weights are stable."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.config import ConfigError, RunConfig
from disttrain.simulation.memory import forecast
from disttrain.strategies.gossip import DPSGD, AlwaysConfig, DPSGDConfig, SometimesConfig, WindowConfig
from disttrain.strategies.gossip.delay import DENSE, largest_eigenvalue, stability_bound
from disttrain.topology import (
    BaseGraphConfig,
    CompleteConfig,
    HypercubeConfig,
    OnePeerExponentialConfig,
    OnePeerHypercubeConfig,
    RandomMatchingConfig,
    RingConfig,
    StarConfig,
    TorusConfig,
)
from tests.parity import build_model, build_optimizer
from tests.reference.gossip import dpsgd
from tests.strategies.gossip.dense import TOPOLOGIES, matrices
from tests.strategies.local_updates.drive import GAMMA, begun, close, quadratic, recorded, run, start

SYMMETRIC = [each for each in TOPOLOGIES if each.build(5).symmetric]
STATIC = [RingConfig(), StarConfig(), CompleteConfig(), HypercubeConfig(), TorusConfig()]
TURNS = [BaseGraphConfig(k=1), BaseGraphConfig(k=2), OnePeerHypercubeConfig(), RandomMatchingConfig()]


def steepest(topology):
    return max(largest_eigenvalue(topology.round(t)) for t in range(topology.period or 1))


def just(share, topology, delay):
    """A mixing rate that is this share of what the bound allows, if it is one at all."""
    return min(1.0, share * stability_bound(delay) / steepest(topology))


# --- what it computes --------------------------------------------------------------------------------------------------


@given(
    topology=st.sampled_from(SYMMETRIC),
    communication=st.sampled_from([AlwaysConfig(), SometimesConfig(probability=0.4), WindowConfig(start=3, stop=7, outside=0.3)]),
    n=st.integers(2, 9),
    period=st.integers(1, 3),
    delay=st.integers(0, 4),
    seed=st.integers(0, 2**20),
)
def test_it_is_the_formula(topology, communication, n, period, delay, seed):
    gradient, x0 = quadratic(seed, n, 4), start(seed, 4)
    rate = just(0.9, topology.build(n), delay)
    strategy = DPSGD(delay=delay, mixing_rate=rate, topology=topology, communication=communication, period=period)
    trace, result = run(strategy, gradient, x0, n, 14)

    def updates(step, x):
        return GAMMA * np.array([gradient(worker, step, row) for worker, row in enumerate(x)])

    expected = dpsgd(x0, matrices(strategy, 14), updates, "combine_while_adapt", late=delay * period)
    assert close(trace, expected[:-1])
    assert close(result, expected[-1].mean(0))


@given(st.sampled_from(SYMMETRIC), st.integers(2, 9), st.integers(1, 5), st.integers(0, 2**20))
def test_the_sum_is_kept(topology, n, delay, seed):
    gradient = recorded(seed, n, 12, 5)
    rate = just(0.9, topology.build(n), delay)
    trace, result = run(DPSGD(delay=delay, mixing_rate=rate, topology=topology), gradient, np.zeros(5), n, 12)
    alone = -GAMMA * np.cumsum([np.mean([gradient(w, t, None) for w in range(n)], axis=0) for t in range(1, 13)], axis=0)
    assert np.abs(trace.mean(1) - alone).max() < 1e-13
    assert np.abs(result - alone[-1]).max() < 1e-13


def test_what_is_sent_is_a_copy_and_as_much_as_without_delay():
    counted = []
    for delay in (0, 2):
        strategy = DPSGD(delay=delay, mixing_rate=0.4, topology=RingConfig())
        run(strategy, quadratic(0, 5, 6), start(0, 6), 5, 9)
        counted.append(strategy.world.traffic.wire_bytes)
    assert counted[0] == counted[1]


# --- what is stable ----------------------------------------------------------------------------------------------------


def radius(eigenvalue, delay):
    """The spectral radius of z^(D+1) = z^D − μ, by its companion matrix."""
    companion = np.diag(np.ones(delay), -1)
    companion[0, 0] = 1.0
    companion[0, delay] -= eigenvalue
    return np.abs(np.linalg.eigvals(companion)).max()


@given(st.integers(0, 12), st.floats(0.05, 0.999), st.floats(1.001, 1.5))
def test_the_bound_is_where_the_companion_matrix_leaves_the_unit_circle(delay, below, above):
    assert radius(below * stability_bound(delay), delay) < 1
    assert radius(above * stability_bound(delay), delay) > 1


def growth(topology, delay, rate, rounds, seed=0):
    """The size of the disagreement in the last rounds, as a multiple of that at the start; numpy, and no strategy."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((topology.size, 6))
    x -= x.mean(0)
    x /= np.abs(x).max()
    history = [np.zeros_like(x)] * delay + [x]
    sizes = []
    for t in range(rounds):
        flows = rate * (topology.matrix(t - delay) @ history[0] - history[0]) if t >= delay else 0.0
        x = x + flows
        history = [*history[1:], x]
        sizes.append(np.abs(x).max())
    return max(sizes[-3 * (delay + 1) :])


@settings(deadline=None)
@given(st.sampled_from(STATIC), st.sampled_from([4, 8]), st.integers(1, 4), st.integers(0, 2**20))
def test_a_fixed_topology_converges_below_the_bound_and_diverges_above(topology, n, delay, seed):
    built = topology.build(n)
    limit = stability_bound(delay) / steepest(built)
    assert growth(built, delay, 0.8 * limit, 600, seed) < 1e-3
    assert growth(built, delay, 1.1 * limit, 600, seed) > 1e2


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from([*TURNS, RandomMatchingConfig()]), st.sampled_from([2, 4, 8, 16]), st.integers(1, 4), st.integers(0, 2**20)
)
def test_where_rounds_differ_the_rule_is_on_the_safe_side(topology, n, delay, seed):
    built = topology.build(n, seed)
    assert growth(built, delay, 0.98 * stability_bound(delay) / steepest(built), 1500, seed) < 1e-1


def floquet(topology, delay, rate):
    """The spectral radius of a whole period of rounds, consensus left out."""
    n = topology.size
    J, P = np.full((n, n), 1 / n), np.eye((delay + 1) * n)
    for t in range(topology.period):
        A = np.diag(np.ones(delay * n), -n)
        A[:n, :n] = np.eye(n)
        A[:n, delay * n :] -= rate * (np.eye(n) - topology.matrix(t))
        P = A @ P
    apart = np.kron(np.eye(delay + 1), np.eye(n) - J)
    return np.abs(np.linalg.eigvals(apart @ P @ apart)).max()


@pytest.mark.parametrize("delay", [1, 2, 3, 4])
def test_so_it_is_for_every_period_of_a_base_graph(delay):
    for n in range(2, 10):
        for k in (1, 2):
            topology = BaseGraphConfig(k=k).build(n)
            assert floquet(topology, delay, 0.999 * stability_bound(delay) / steepest(topology)) < 1


def test_of_many_workers_the_eigenvalue_is_bounded():
    many = DENSE + 2
    for topology, exact in ((RingConfig(), 4 / 3), (RandomMatchingConfig(), 1.0), (HypercubeConfig(), None)):
        n = 1024 if exact is None else many
        bound = largest_eigenvalue(topology.build(n).round(0))
        assert bound == pytest.approx(exact or 2 * 10 / 11)
    small = StarConfig().build(8).round(0)
    assert largest_eigenvalue(small) == pytest.approx(1.0)
    assert 2 * float(small.weights.sum(1).max()) == pytest.approx(2 * 7 / 8), "the bound of a star is not sharp"


# --- what is refused ---------------------------------------------------------------------------------------------------


def checked(workers, **strategy):
    RunConfig(strategy=DPSGDConfig(**strategy)).check_world(workers)


def test_matchings_of_two_rounds_delay():
    with pytest.raises(ConfigError) as caught:
        checked(8, topology=RandomMatchingConfig(), delay=2)
    (line,) = caught.value.lines
    assert "less than 2 sin(π / (2 (2·delay + 1))) = 0.618" in line
    assert "take mixing_rate=0.618 or less, or a shorter delay" in line
    assert "random_matching of 8 workers mixes by up to 1 " in line
    checked(8, topology=RandomMatchingConfig(), delay=2, mixing_rate=0.5)
    checked(8, topology=RandomMatchingConfig(), delay=2, mixing_rate=0.618)
    with pytest.raises(ValueError, match="overshoot"):
        begun(DPSGD(delay=2, topology=RandomMatchingConfig()), 4, np.zeros(3))


@given(st.sampled_from(SYMMETRIC), st.integers(2, 9), st.integers(2, 200))
def test_the_rate_that_is_named_is_taken_and_the_next_is_not(topology, n, delay):
    with pytest.raises(ValueError, match="overshoot") as caught:
        DPSGDConfig(topology=topology, delay=delay).check_world(n)
    named = float(str(caught.value).split("take mixing_rate=")[1].split(" ")[0])
    DPSGDConfig(topology=topology, delay=delay, mixing_rate=named).check_world(n)
    more = named + 10.0 ** (math.floor(math.log10(named)) - 2) * 1.001
    with pytest.raises(ValueError, match="overshoot"):
        DPSGDConfig(topology=topology, delay=delay, mixing_rate=more).check_world(n)


def test_a_window_of_everybody_counts():
    checked(8, topology=HypercubeConfig(), delay=1, mixing_rate=0.65)
    slow = HypercubeConfig().build(8)
    assert steepest(slow) > 1, "a hypercube is steeper than everybody"
    everybody = WindowConfig(start=5, everybody=True)
    damped = {"topology": BaseGraphConfig(k=1), "delay": 1, "communication": everybody}
    checked(8, **damped, mixing_rate=0.99)
    with pytest.raises(ConfigError, match="overshoot"):
        checked(8, **damped)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPSGD(delay=-1, topology=RingConfig()), "delay must be at least 0 .* got -1 and 1.0"),
        (lambda: DPSGD(mixing_rate=0.0, topology=RingConfig()), r"mixing_rate in \(0, 1\], got 0 and 0.0"),
        (lambda: DPSGDConfig(delay=1, order="adapt_then_combine"), "waits for every exchange, so delay must be 0, got 1"),
        (
            lambda: DPSGDConfig(delay=3, period=5).check_steps(20),
            "steps=20 is too short for delay=3 rounds of period=5 steps: the first flow is due after step 20",
        ),
        (lambda: checked(4, topology=OnePeerExponentialConfig(), delay=1), "is one-way: take base_graph"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        make()


def test_a_single_worker_may_be_as_late_as_it_likes():
    checked(1, topology=RingConfig(), delay=9)


# --- memory ------------------------------------------------------------------------------------------------------------


def copies(**settings):
    config = DPSGDConfig(topology=RingConfig(), **settings)
    return forecast(build_model(), 8, config.build, build_optimizer, 0, None).copies


def test_each_round_of_delay_is_one_more_copy():
    kept = [copies(delay=delay, mixing_rate=0.1)["strategy state"] for delay in (1, 2, 4)]
    assert kept == pytest.approx([2, 3, 5], abs=0.1)
    assert copies()["being reduced"] == copies(delay=4, mixing_rate=0.1)["being reduced"]


def test_a_flow_that_was_waited_for_is_not_kept_longer_than_it_is_late():
    strategy = begun(DPSGD(delay=1, mixing_rate=0.5, topology=RingConfig()), 3, np.zeros(2))
    for step in range(4):
        strategy.before_step()
        strategy.x += torch.arange(3.0)[:, None]
        strategy.after_step()
        if step == 1:
            assert strategy.local["late_flows"].any()
    assert strategy._late._flows is None
