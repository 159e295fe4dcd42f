"""FSDP inside replica groups: the same training as with whole parameters, from a shard of everything on each worker."""

import copy

import pytest
import torch
from torch import nn

from disttrain.component import UserError
from disttrain.config import RunConfig
from disttrain.config_sections import LaunchConfig, TrainingConfig
from disttrain.optim import AdamWConfig, MuonConfig, SGDConfig
from disttrain.recording.metrics import read_metrics
from disttrain.strategies import CO2Config, EagerDiLoCoConfig, LocalSGDConfig, StreamingDiLoCoConfig
from disttrain.strategies.attach import parameters_as
from disttrain.strategies.attach_fsdp import blocks_of
from disttrain.training.assembly import assemble
from disttrain.training.state import TrainingState
from tests.parity import loss
from tests.sockets import bytes_sent
from tests.training.small_run import train, write_config

STEPS, STOP = 11, 6  # in mid-round, with an exchange under way
RUNS = {
    "co2, adamw": (CO2Config(period=4, group_size=2), AdamWConfig(lr=0.02)),
    "eager, sgd": (EagerDiLoCoConfig(period=3, group_size=2), SGDConfig(lr=0.05, momentum=0.9)),
}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inside, self.scale = nn.Linear(width, width), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x + self.scale * torch.tanh(self.inside(x))


class Blocks(nn.Module):
    """Shards of unequal size and none, a frozen parameter, one used twice, a buffer that changes, and blocks."""

    def __init__(self, width):
        super().__init__()
        self.first, self.blocks = nn.Linear(16, width), nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.last = nn.BatchNorm1d(width), nn.Linear(width, 4)
        self.twice = nn.Linear(width, width, bias=False)
        self.again = self.twice
        self.last.bias.requires_grad_(False)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(torch.tanh(self.again(self.twice(self.norm(x)))))


class Assembled:
    """A worker as a session has it, with clipping."""

    def __init__(self, world, run, inner, width=9, own=None, **launch):
        strategy, optimizer = run
        strategy = type(strategy).model_validate(strategy.model_dump() | {"inner": inner})
        training = TrainingConfig(clip_norm=0.5)
        config = RunConfig(strategy=strategy, optimizer=optimizer, training=training, launch=LaunchConfig(**launch))
        torch.manual_seed(0)
        self.rank, self.module, self.strategy = world.rank, Blocks(width), config.strategy.build()
        self.model, self.optimizer = assemble(config, self.strategy, world, self.module, own and own(self.module))
        self.state = TrainingState(self.module, self.optimizer, self.strategy, world.rank)

    def train(self, first, last):
        for step in range(first, last):
            generator = torch.Generator().manual_seed(1000 * step + self.rank)
            inputs, targets = torch.randn(8, 16, generator=generator), torch.randn(8, 4, generator=generator)
            with self.model.no_sync():
                loss(self.model, inputs[:4], targets[:4]).backward()
            loss(self.model, inputs[4:], targets[4:]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def bytes_kept(self):
        """Memory behind parameters and optimizer state."""
        state = self.state.capture({}, {}).local.items()
        memories = [value.untyped_storage() for name, value in state if name.startswith(("model.", "optimizer."))]
        return sum({memory.data_ptr(): memory.nbytes() for memory in memories}.values())

    def everything(self):
        """The live parameters and buffers, and the result."""
        before = {name: value.clone() for name, value in self.evaluate(self.strategy.x.clone()).items()}
        return torch.cat([value.flatten().float() for value in (before | self.evaluate(self.strategy.finish())).values()])

    def evaluate(self, x):
        """The module's state, whole, with a vector in place of the parameters, after a pass through it."""
        with parameters_as(self.strategy.x, x, self.model.live), torch.no_grad():
            output = self.model.eval()(torch.ones(3, 16))
            whole = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in self.model.state_dict().items()}
            self.model.train()
            return {n: value.clone() for n, value in whole.items()} | {"output": output}


def shards(world):
    """By run: how far from whole parameters, whether it was exact after a resumption and after evaluations, the share kept."""
    seen = {}
    for name, run in RUNS.items():
        whole, sharded = (Assembled(world, run, inner).train(0, STEPS) for inner in ("ddp", "fsdp"))
        kept = [each.bytes_kept() for each in (sharded, whole)]
        before = Assembled(world, run, "fsdp").train(0, STOP)
        after = Assembled(world, run, "fsdp")
        after.state.restore(copy.deepcopy(before.state.capture({}, {})))
        before.evaluate(before.strategy.evaluation())
        result = sharded.everything()
        exact = [torch.equal(each.train(STOP, STEPS).everything(), result) for each in (before, after)]
        expected = whole.everything()
        seen[name] = float((expected - result).norm() / expected.norm()), exact, kept[0] / kept[1]
    return seen


def test_members_keep_shards_and_train_as_if_they_had_it_all(workers):
    for seen in workers(4, shards):
        for name, (difference, exact, share) in seen.items():
            assert difference < 1e-5, name
            assert exact == [True, True], name
            assert 0.4 < share < 0.65, name  # rows are odd in number, and what is frozen is whole


def ended(world):
    """The state of the module that a run ends with, here whole, and the bytes of some steps, counted and of the kernel."""
    run = (LocalSGDConfig(period=3, group_size=2), SGDConfig(lr=0.05))
    worker = Assembled(world, run, "fsdp", width=200).train(0, 1)
    counted, sent = world.traffic.wire_bytes, bytes_sent()
    worker.train(1, 4)
    counted, sent = world.traffic.wire_bytes - counted, bytes_sent() - sent
    with worker.model.live():
        worker.strategy.x.copy_(worker.strategy.finish())
    module = worker.model.detach()
    return type(module).__name__, {n: v.clone() for n, v in module.state_dict().items()}, counted, sent


def test_the_module_at_the_end_is_whole_and_the_same_everywhere(workers):
    everybody = workers(4, ended)
    shapes = {name: value.shape for name, value in Blocks(200).state_dict().items()}
    for kind, state, counted, sent in everybody:
        assert kind == "Blocks"
        assert {name: value.shape for name, value in state.items()} == shapes
        assert all(torch.equal(state[name], everybody[0][1][name]) for name in state if "norm.running" not in name)
        assert counted == pytest.approx(sent, rel=0.03)


def test_blocks_are_what_module_lists_hold():
    module = Blocks(8)
    assert blocks_of(module) == list(module.blocks)
    tied = nn.Linear(8, 8)
    tied.weight = module.twice.weight
    module.extra = nn.ModuleList([nn.ModuleList([nn.Linear(8, 8)]), nn.Tanh(), tied])
    assert blocks_of(module) == list(module.blocks)  # what is not called, has nothing to train, or shares a parameter


def test_a_whole_run(launched, tmp_path):
    config = write_config(tmp_path)
    options = ("strategy.name=local_sgd", "strategy.period=5", "strategy.group_size=2", "strategy.inner=fsdp")
    results = launched(4, train, config, tmp_path / "run", *options)
    assert len({own for own, _ in results}) == 1
    summary = results[0][1]
    assert summary["weights_sha256"] == results[0][0]
    assert summary["model"] == "Plm"
    losses = [
        record["validation_loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "validation_loss" in record
    ]
    assert losses[1] < losses[0] < 5.4  # of about 5.5 at the start


@pytest.mark.slow
def test_a_run_that_is_stopped_and_goes_on(launched, tmp_path):
    config = write_config(tmp_path)
    options = ("strategy.name=co2", "strategy.period=6", "strategy.group_size=2", "strategy.inner=fsdp", "optimizer.name=adamw")
    straight = launched(4, train, config, tmp_path / "straight", *options)
    launched(4, train, config, tmp_path / "halves", *options, "training.stop_after=10")
    halves = launched(4, train, config, tmp_path / "halves", *options, "training.resume=auto")
    assert [own for own, _ in halves] == [own for own, _ in straight]


# --- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "fsdp shards inside replica groups, and group_size=1 has none"),
        ({"group_size": 2, "warmup_steps": 3}, "warmup_steps=3 must be 0"),
        ({"group_size": 2, "clip": 0.1, "clip_mode": "norm"}, "take clip_mode=value"),
    ],
)
def test_settings_that_need_whole_parameters(settings, message):
    with pytest.raises(ValueError, match=message):
        CO2Config(inner="fsdp", **settings)


def test_fragments_are_not_sharded():
    with pytest.raises(ValueError, match="fragments=3 must be 1"):
        StreamingDiLoCoConfig(inner="fsdp", group_size=2)


def refusals(world):
    messages, run = [], RUNS["co2, adamw"]
    for each, options in (
        ((run[0], MuonConfig()), {}),
        (run, {"own": lambda module: torch.optim.SGD(module.parameters(), 0.1)}),
        (run, {"emulated_step_time": 0.1}),
    ):
        with pytest.raises(UserError) as refused:
            Assembled(world, each, "fsdp", **options)
        messages.append(str(refused.value))
    return messages


def test_optimizers_and_compute_that_need_whole_parameters(workers):
    muon, own, emulated = workers(1, refusals)[0]
    assert "optimizer.name=muon steps whole matrices" in muon
    assert "the SGD that prepare() was given holds the old ones" in own
    assert "launch.emulated_step_time does not run" in emulated
