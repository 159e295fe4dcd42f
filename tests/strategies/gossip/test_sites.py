"""Sites: data parallelism inside, gossip between them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.config import ConfigError, RunConfig
from disttrain.simulation.engine import Engine
from disttrain.simulation.replicas import Replicas
from disttrain.strategies import DDPConfig
from disttrain.strategies.gossip import DPSGD, BudgetConfig, DPSGDConfig, SometimesConfig, TriggeredConfig
from disttrain.topology import BaseGraphConfig, HypercubeConfig, OnePeerExponentialConfig, RingConfig, in_sites
from disttrain.worlds import StackedWorld
from disttrain.worlds.traffic import all_gather_wire_bytes, all_reduce_wire_bytes
from tests.parity import build_model, build_optimizer
from tests.strategies.gossip.dense import TOPOLOGIES

STEPS = 7


def engine(config, num_workers):
    strategy = config.build()
    strategy.total_steps = STEPS
    return Engine(Replicas(build_model(), num_workers), strategy, StackedWorld(num_workers, debug=True), build_optimizer)


def gradients(num_workers):
    """``[STEPS, N, d]``; the same for a worker whatever their number."""
    d = Replicas(build_model(), 1).layout.d
    return torch.stack([torch.randn(STEPS, d, generator=torch.Generator().manual_seed(w)) for w in range(num_workers)], dim=1)


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"topology": RingConfig()},
        {"topology": BaseGraphConfig(k=1), "period": 2, "order": "adapt_then_combine"},
        {"topology": OnePeerExponentialConfig(), "communication": SometimesConfig(probability=0.5)},
        {"topology": RingConfig(), "communication": TriggeredConfig(threshold=0.05)},
        {"topology": BaseGraphConfig(k=2), "delay": 2, "mixing_rate": 0.5},
    ],
)
def test_a_site_is_one_worker_with_its_members_mean_gradient(members, settings):
    sites, singles = engine(DPSGDConfig(**settings, group_size=members), 3 * members), engine(DPSGDConfig(**settings), 3)
    for g in gradients(3 * members):
        sites.step(g.clone())
        singles.step(g.view(3, members, -1).mean(1))
        x = sites.replicas.x.view(3, members, -1)
        assert torch.equal(x, x[:, :1].expand_as(x)), "members stay the same to the bit"
        torch.testing.assert_close(x[:, 0], singles.replicas.x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sites.strategy.finish(), singles.strategy.finish(), rtol=1e-5, atol=1e-6)
    of_sites, of_singles = sites.strategy.metrics, singles.strategy.metrics
    assert of_sites == pytest.approx(of_singles, rel=1e-4)


def test_one_site_of_all_is_ddp():
    together, ddp = engine(DPSGDConfig(topology=RingConfig(), group_size=4), 4), engine(DDPConfig(), 4)
    for g in gradients(4):
        together.step(g.clone())
        ddp.step(g.clone())
        assert torch.equal(together.replicas.x, ddp.replicas.x)
    torch.testing.assert_close(together.strategy.finish(), ddp.strategy.finish())


@settings(deadline=None)
@given(st.sampled_from(TOPOLOGIES), st.integers(1, 6), st.integers(1, 4), st.integers(0, 9))
def test_sites_hear_each_other_place_by_place(topology, sites, members, t):
    mixing = topology.build(sites).round(t)
    W = torch.from_numpy(mixing.matrix())
    assert torch.allclose(torch.from_numpy(in_sites(mixing, members).matrix()), torch.kron(W, torch.eye(members).double()))


def test_each_member_sends_a_part_between_sites_and_all_of_it_inside():
    members, settings = 3, {"topology": RingConfig(), "merge": False}
    sites = engine(DPSGDConfig(**settings, group_size=members), 9)
    layout, before = sites.replicas.layout, sites.world.traffic.wire_bytes
    for g in gradients(9):
        sites.step(g.clone())
    sites.strategy.finish()
    part = -(-layout.d // members)
    between, inside = 2 * 4 * part, all_gather_wire_bytes(4 * (part + 1), members)
    averaging = all_reduce_wire_bytes(4 * layout.numel, members)
    assert sites.world.traffic.wire_bytes - before == STEPS * (between + inside + averaging)
    assert sites.strategy._costs.round_bytes == between + inside


@pytest.mark.parametrize("merge", [False, True])
def test_a_budget_counts_what_a_member_sends(merge):
    layout = Replicas(build_model(), 1).layout
    settings = {"topology": RingConfig(), "group_size": 2, "merge": merge}
    budget = 3 * 4 * 2 * layout.d + (2 * 4 * layout.d if merge else 0)
    sites = engine(DPSGDConfig(**settings, communication=BudgetConfig(bytes=budget)), 6)
    before = sites.world.traffic.wire_bytes
    for g in gradients(6):
        sites.step(g.clone())
    sites.strategy.finish()
    averaging = STEPS * all_reduce_wire_bytes(4 * layout.numel, 2)
    models = sites.world.traffic.wire_bytes - before - averaging
    assert budget - sites.strategy._costs.round_bytes < models <= budget


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPSGD(topology=RingConfig(), group_size=0), "group_size must be at least 1, got 0"),
        (
            lambda: RunConfig(strategy=DPSGDConfig(group_size=3)).check_world(4),
            "group_size=3 does not divide 4 workers into equal groups",
        ),
        (
            lambda: RunConfig(strategy=DPSGDConfig(group_size=2, topology=HypercubeConfig())).check_world(12),
            "hypercube needs a power of two of workers, got 6",
        ),
        (
            lambda: RunConfig(strategy=DPSGDConfig(group_size=2, topology=RingConfig(), delay=2)).check_world(8),
            "ring of 4 workers mixes",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        make()
