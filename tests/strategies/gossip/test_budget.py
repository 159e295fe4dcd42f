"""A budget in bytes: never exceeded, nearly used up, and spent when it was asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.config import RunConfig
from disttrain.strategies.gossip import DPSGD, BudgetConfig, DPSGDConfig, GradientTracking, SometimesConfig
from disttrain.strategies.gossip.communication import Affordable, Costs
from disttrain.topology import CompleteConfig, ExponentialConfig, OnePeerExponentialConfig, RandomMatchingConfig, RingConfig
from disttrain.topology.base import TopologyConfig
from tests.strategies.gossip.dense import TOPOLOGIES
from tests.strategies.gossip.test_mixers import track
from tests.strategies.local_updates.drive import begun, local_step, quadratic, start

SPEND = ["even", "early", "late"]
D = 6
MODEL = 8 * D


def trained(strategy, n, steps, seed=0):
    """Bytes of worker 0 for models, and after which steps it sent any."""
    strategy.total_steps = steps
    begun(strategy, n, start(seed, D))
    gradient, spoken = quadratic(seed, n, D), []
    for step in range(1, steps + 1):
        before = strategy.world.traffic.wire_bytes
        local_step(strategy, gradient, step)
        if strategy.world.traffic.wire_bytes > before:
            spoken.append(step)
    strategy.finish()
    return strategy.world.traffic.wire_bytes, spoken


@given(
    topology=st.sampled_from(TOPOLOGIES),
    spend=st.sampled_from(SPEND),
    n=st.integers(2, 9),
    period=st.integers(1, 3),
    merge=st.booleans(),
    rounds=st.floats(1.0, 30.0),
)
def test_it_is_never_exceeded(topology, spend, n, period, merge, rounds):
    built = topology.build(n)
    at_the_end = round(2 * MODEL * (n - 1) / n) if merge else 0
    budget = int(rounds * MODEL * built.degree) + at_the_end
    steps = 20
    communication = BudgetConfig(bytes=budget, spend=spend)
    sent, _ = trained(DPSGD(topology=topology, communication=communication, period=period, merge=merge), n, steps)
    assert sent <= budget
    regular = (built.round(0).senders != torch.arange(n)[:, None]).sum(1).min() == built.degree
    if regular and built.period == 1:  # of worker 0 no less is sent than of any other
        assert sent == min(int(rounds), steps // period) * MODEL * built.degree + at_the_end


def affordable(spend, rounds, of):
    schedule = Affordable(rounds=rounds, of=of, period=1, spend=spend)
    return [number for number in range(1, of + 1) if schedule.rate(number)]


@given(st.integers(1, 300), st.integers(1, 300))
def test_when_it_is_spent(rounds, more):
    of = rounds + more - 1
    assert affordable("early", rounds, of) == list(range(1, rounds + 1))
    assert affordable("late", rounds, of) == list(range(of - rounds + 1, of + 1))
    even = affordable("even", rounds, of)
    assert len(even) == rounds
    assert even[-1] == of, "the last round is before the merge"
    gaps = np.diff([0, *even])
    assert gaps.max() - gaps.min() <= 1


def test_in_a_run():
    communication = BudgetConfig(bytes=4 * 2 * MODEL, spend="late")
    sent, spoken = trained(DPSGD(topology=RingConfig(), communication=communication, period=2, merge=False), 5, 21)
    assert (sent, spoken) == (4 * 2 * MODEL, [14, 16, 18, 20])


def test_a_strategy_that_sends_more_affords_less():
    gradient, x0 = quadratic(0, 4, D), start(0, D)
    strategy = GradientTracking(topology=RingConfig(), communication=BudgetConfig(bytes=3 * 4 * MODEL), merge=False)
    strategy.total_steps = 10
    track(strategy, gradient, x0, 4)
    assert strategy.world.traffic.wire_bytes == 3 * 4 * MODEL
    assert "; in 3 of 10 rounds" in strategy.description


@pytest.mark.parametrize("topology", [*TOPOLOGIES, RandomMatchingConfig()])
def test_whoever_sends_most_counts(topology: TopologyConfig):
    for n in (1, 2, 5, 8):
        built = topology.build(n)
        most = 0
        for t in range(built.period or 1):
            round = built.round(t)
            most = max(most, *(len(round.receivers(worker)) for worker in range(n)))
        assert built.fan_out == most
    known = {CompleteConfig(): 7, ExponentialConfig(): 3, OnePeerExponentialConfig(): 1}
    assert {config: config.build(8).fan_out for config in known} == known


def test_too_small_a_budget():
    one = DPSGD(topology=RingConfig(), communication=BudgetConfig(bytes=100))
    one.total_steps = 10
    with pytest.raises(ValueError, match=r"sends 96 bytes for one, and for the merge at the end 77 .* give at least 173$"):
        begun(one, 5, np.zeros(D))
    one = DPSGD(topology=RingConfig(), communication=BudgetConfig(bytes=95), merge=False)
    one.total_steps = 10
    with pytest.raises(ValueError, match=r"a worker sends 96 bytes for one; give at least 96$"):
        begun(one, 5, np.zeros(D))


def test_without_a_number_of_steps():
    with pytest.raises(ValueError, match="set the strategy's total_steps before begin"):
        begun(DPSGD(topology=RingConfig(), communication=BudgetConfig(bytes=1000)), 3, np.zeros(D))
    assert SometimesConfig().fitted(Costs(None, 1, 10, 10)) == SometimesConfig()


def test_a_config_says_how_long_the_run_is():
    config = RunConfig(strategy=DPSGDConfig(communication=BudgetConfig(bytes=1000)))
    assert config.build_strategy().total_steps == config.training.steps


def test_a_single_worker_pays_nothing():
    assert trained(DPSGD(topology=RingConfig(), communication=BudgetConfig(bytes=0)), 1, 5) == (0, [])
