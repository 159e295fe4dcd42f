"""ZeRO-1 inside replica groups: the same steps as with whole optimizers, from a part of their state on each worker."""

import copy

import pytest
import torch

from disttrain.component import UserError
from disttrain.config import ConfigError, RunConfig, load_config
from disttrain.optim import AdamWConfig, COSMOSConfig, ImportedConfig, MuonConfig, SGDConfig
from disttrain.simulation.run import SimulateOptions, check
from disttrain.strategies import CO2Config, LocalSGDConfig
from disttrain.training.assembly import assemble
from disttrain.training.state import TrainingState
from tests.parity import build_model, loss
from tests.training.small_run import train, write_config

STEPS, STOP = 11, 6  # in mid-round, with an exchange under way
OPTIMIZERS = {
    "sgd": SGDConfig(lr=0.05, momentum=0.9),
    "adamw": AdamWConfig(lr=0.02),
    "adagrad": ImportedConfig(target="torch.optim:Adagrad", lr=0.02),
    "muon": MuonConfig(lr=0.02),
    "cosmos": COSMOSConfig(lr=0.02, rank=4),
}


class Assembled:
    """A worker as a session has it, in pairs under CO2."""

    def __init__(self, world, optimizer, inner, own=None):
        config = RunConfig(strategy=CO2Config(period=4, group_size=2, inner=inner), optimizer=optimizer)
        self.rank, self.module, self.strategy = world.rank, build_model(), config.strategy.build()
        self.model, self.optimizer = assemble(config, self.strategy, world, self.module, own and own(self.module))
        self.state = TrainingState(self.module, self.optimizer, self.strategy, world.rank)

    def train(self, first, last):
        for step in range(first, last):
            generator = torch.Generator().manual_seed(1000 * step + self.rank)
            loss(self.model, torch.randn(8, 16, generator=generator), torch.randn(8, 4, generator=generator)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def everything(self):
        return torch.cat([self.strategy.x, self.strategy.finish()])


def shards(world):
    """By optimizer: how far from whole optimizers, whether resumption was exact, and how much state is kept, of how much."""
    seen = {}
    for name, optimizer in OPTIMIZERS.items():
        whole, dealt = (Assembled(world, optimizer, inner).train(0, STEPS) for inner in ("ddp", "zero1"))
        kept = [sum(v.numel() for s in each.optimizer.state.values() for v in s.values()) for each in (dealt, whole)]
        before = Assembled(world, optimizer, "zero1").train(0, STOP)
        after = Assembled(world, optimizer, "zero1")
        after.state.restore(copy.deepcopy(before.state.capture({}, {})))
        after.train(STOP, STEPS)
        expected, result = whole.everything(), dealt.everything()
        exact = torch.equal(after.everything(), result) and torch.equal(before.train(STOP, STEPS).everything(), result)
        seen[name] = float((expected - result).norm() / expected.norm()), exact, kept
    return seen


def test_members_keep_parts_and_step_as_if_they_had_it_all(workers):
    everybody = workers(4, shards)
    for name in OPTIMIZERS:
        differences, exact, kept = zip(*(seen[name] for seen in everybody), strict=True)
        if name in ("muon", "cosmos"):  # matrices are stacked otherwise, and AdamW's state is not dealt out
            assert max(differences) < 1e-5, name
            assert all(own < whole for own, whole in kept), name
        else:
            assert max(differences) == 0, name
            assert kept[0][0] + kept[1][0] == kept[0][1] == kept[2][0] + kept[3][0], name
        assert all(exact), name


def refusals(world):
    with pytest.raises(UserError) as built:
        Assembled(world, SGDConfig(), "zero1", lambda module: torch.optim.Adam(module.parameters()))
    with pytest.raises(UserError) as odd:
        Assembled(world, ImportedConfig(target=f"{__name__}:Odd", lr=0.1, arguments={"secret": 2}), "zero1")
    return str(built.value), str(odd.value)


class Odd(torch.optim.SGD):
    """Whose constructor its settings do not tell."""

    def __init__(self, params, secret, lr=0.1):
        super().__init__(params, lr)


def test_an_optimizer_that_cannot_be_built_anew_is_refused(workers):
    for built, odd in workers(2, refusals):
        assert "Adam that prepare() was given is built already" in built
        assert "Odd cannot be built from its own settings" in odd


@pytest.mark.slow
def test_a_run_that_is_stopped_and_goes_on(launched, tmp_path):
    config = write_config(tmp_path)
    options = (
        "strategy.name=local_sgd",
        "strategy.period=5",
        "strategy.group_size=2",
        "optimizer.name=adamw",
        "optimizer.lr=3e-3",
    )
    ddp = launched(4, train, config, tmp_path / "ddp", *options)
    zero1 = launched(4, train, config, tmp_path / "zero1", *options, "strategy.inner=zero1", "training.stop_after=10")
    zero1 = launched(4, train, config, tmp_path / "zero1", *options, "strategy.inner=zero1", "training.resume=auto")
    assert [own for own, _ in zero1] == [own for own, _ in ddp]
    assert zero1[0][1]["optimizer"] == "AdamW"
    assert zero1[0][1]["wire_bytes"] > ddp[0][1]["wire_bytes"]  # the parameters after each step


# --- what cannot be ----------------------------------------------------------------------------------------------------


def test_one_worker_has_nobody_to_shard_with():
    with pytest.raises(ValueError, match="zero1 shards inside replica groups, and group_size=1 has none"):
        LocalSGDConfig(inner="zero1")


def test_a_simulation_has_nothing_to_shard(tmp_path):
    loaded = load_config(
        write_config(tmp_path), ["strategy.name=co2", "strategy.period=5", "strategy.group_size=2", "strategy.inner=zero1"]
    )
    with pytest.raises(ConfigError, match=r"strategy\.inner: a simulation has one process"):
        check(loaded, SimulateOptions(4))


def test_a_strategy_without_groups_has_no_inner(tmp_path):
    with pytest.raises(ConfigError, match=r"strategy\.inner"):
        load_config(write_config(tmp_path), ["strategy.inner=zero1"])
