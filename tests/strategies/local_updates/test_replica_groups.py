"""Replica groups: data parallelism inside, local updates across."""

import copy

import pytest
import torch

from disttrain.compression.quantize import Int8Config
from disttrain.config import ConfigError, RunConfig
from disttrain.simulation.engine import Engine
from disttrain.simulation.replicas import Replicas
from disttrain.strategies import (
    CO2Config,
    DDPConfig,
    DiLoCoConfig,
    EagerDiLoCoConfig,
    LocalSGDConfig,
    SlowMoConfig,
    StreamingDiLoCoConfig,
    strategies,
)
from disttrain.strategies.local_updates import LocalUpdates, LocalUpdatesConfig, OuterStep
from disttrain.worlds import StackedWorld
from tests.parity import build_model, build_optimizer
from tests.strategies.trained import Trained

PAIRS = {
    "local_sgd": LocalSGDConfig(period=4, group_size=2),
    "co2": CO2Config(period=4, group_size=2),
    "post-local, in parts": StreamingDiLoCoConfig(period=4, fragments=2, delay=2, warmup_steps=3, group_size=2),
}
STEPS = 11


def test_rows_and_processes_agree(parity):
    parity(*(config.build for config in PAIRS.values()), tolerance=1e-6, sizes=(4,))


# --- what groups are, on rows ------------------------------------------------------------------------------------------


def engine(config, num_workers):
    return Engine(Replicas(build_model(), num_workers), config.build(), StackedWorld(num_workers, debug=True), build_optimizer)


def gradients(num_workers, steps=STEPS):
    """``[steps, N, d]``; the same for a worker whatever their number."""
    d = Replicas(build_model(), 1).layout.d
    return torch.stack([torch.randn(steps, d, generator=torch.Generator().manual_seed(w)) for w in range(num_workers)], dim=1)


@pytest.mark.parametrize("method", [LocalSGDConfig, CO2Config, SlowMoConfig, DiLoCoConfig])
def test_a_group_is_one_worker_with_its_members_mean_gradient(method):
    own = gradients(6)
    pairs, singles = engine(method(period=4, group_size=2), 6), engine(method(period=4), 3)
    for g in own:
        pairs.step(g.clone())
        singles.step(g.view(3, 2, -1).mean(1))
        assert torch.equal(pairs.replicas.x[0::2], pairs.replicas.x[1::2])
        torch.testing.assert_close(pairs.replicas.x[0::2], singles.replicas.x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pairs.strategy.finish(), singles.strategy.finish(), rtol=1e-5, atol=1e-6)


def test_eager_counts_a_group_once():
    pairs, singles = engine(EagerDiLoCoConfig(period=2, group_size=2), 4), engine(EagerDiLoCoConfig(period=2), 2)
    for g in gradients(2):
        pairs.step(g.repeat_interleave(2, dim=0))
        singles.step(g.clone())
        torch.testing.assert_close(pairs.replicas.x[::2], singles.replicas.x, rtol=1e-5, atol=1e-6)


def test_one_group_of_all_is_ddp():
    together, ddp = engine(LocalSGDConfig(period=4, group_size=4), 4), engine(DDPConfig(), 4)
    for step, g in enumerate(gradients(4), 1):
        together.step(g.clone())
        ddp.step(g.clone())
        if step < 4:
            assert torch.equal(together.replicas.x, ddp.replicas.x)
        torch.testing.assert_close(together.replicas.x, ddp.replicas.x, rtol=1e-6, atol=1e-7)  # x is not A − (A − x) in every bit


def test_warming_up_is_ddp_of_all():
    groups, ddp = engine(LocalSGDConfig(period=2, warmup_steps=STEPS, group_size=2), 4), engine(DDPConfig(), 4)
    for g in gradients(4):
        groups.step(g.clone())
        ddp.step(g.clone())
    assert torch.equal(groups.replicas.x, ddp.replicas.x)


def test_the_slow_links_carry_one_delta_for_a_group():
    groups = engine(LocalSGDConfig(period=2, group_size=2), 4)
    d, counted = groups.replicas.layout.d, []
    numel = groups.replicas.layout.numel  # what pads parameters is not averaged
    for g in gradients(4, steps=2):
        before = groups.world.traffic.wire_bytes
        groups.step(g)
        counted.append(groups.world.traffic.wire_bytes - before)
    in_a_step, across, inside = 4 * numel, 4 * d // 2, 4 * d // 2  # half a delta to the peer, and the mean of it to the member
    assert counted == [in_a_step, in_a_step + across + inside]
    assert f"{across + inside:,} bytes per round" in groups.strategy.description
    assert "inside groups of 2" in groups.strategy.description


# --- what cannot be ----------------------------------------------------------------------------------------------------


def test_groups_must_be_equal():
    config = RunConfig(strategy=LocalSGDConfig(group_size=4))
    config.check_world(8)
    with pytest.raises(ConfigError, match="strategy: group_size=4 does not divide 6 workers"):
        config.check_world(6)
    with pytest.raises(ValueError, match="group_size=4 does not divide 6 workers"):
        engine(LocalSGDConfig(group_size=4), 6)


def test_what_groups_cannot_send():
    for settings in ({"compressor": Int8Config()}, {"reducer": "gather"}):
        with pytest.raises(ValueError, match="with group_size=2 take compressor=identity and reducer=auto"):
            CO2Config(group_size=2, **settings)
    with pytest.raises(ValueError, match="group_size must be at least 1, got 0"):
        LocalUpdates(4, OuterStep(), group_size=0)


OURS = [strategies[name] for name in strategies.names() if strategies[name].__module__.startswith("disttrain.")]


@pytest.mark.parametrize("config", [config for config in OURS if issubclass(config, LocalUpdatesConfig)])
def test_no_method_drops_what_all_have(config):
    built = config(group_size=3, warmup_steps=5, period=7).build()
    assert (built.group_size, built.warmup_steps, built.period) == (3, 5, 7)
    assert config(period=7, compressor=Int8Config()).build()._compression is not None


# --- processes ---------------------------------------------------------------------------------------------------------


def equal_and_resumed(world):
    """Of some methods: after every step, whose live parameters are equal to worker 0's; which resumptions differed."""
    seen, unequal = {}, []
    for name in ("co2", "post-local, in parts"):
        straight = Trained(world, PAIRS[name])
        rows = []
        for step in range(STEPS):
            straight.train(step, step + 1)
            everybody = world.gather(straight.strategy.x)[0]
            rows.append((everybody == everybody[0]).all(1).tolist())
        seen[name] = rows
        expected = straight.everything()
        for stop in (6, 8):
            before, after = Trained(world, PAIRS[name]), Trained(world, PAIRS[name])
            before.train(0, stop)
            after.state.restore(copy.deepcopy(before.state.capture({}, {})))
            after.train(stop, STEPS)
            if not all(map(torch.equal, after.everything(), expected)):
                unequal.append((name, stop))
    return seen, unequal


def test_groups_of_processes_stay_equal_and_resume_bitwise(workers):
    for seen, unequal in workers(4, equal_and_resumed):
        assert unequal == []
        for name, rows in seen.items():
            assert all(row[:2] == [True, True] and row[2] == row[3] for row in rows), name
            assert [True, True, False, False] in rows, name
