"""The project's promise as one line per strategy: rows in one process and gloo processes compute the same.

    def test_it(parity):
        parity(MyStrategyConfig().build)                    # bitwise, after every step, on 2, 4 and 5 workers
        parity(MyStrategyConfig().build, tolerance=1e-6)    # relative and per step, where an all-reduce sums in its own order

Both sides get the same recorded gradients: what each process's backward computed, before any exchange. Free-running sides
would amplify a last bit's difference within steps. Both worlds are in debug mode.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disttrain.simulation.engine import Engine
from disttrain.simulation.replicas import Replicas
from disttrain.strategies import Strategy
from disttrain.strategies.attach import StrategyOptimizer, attach
from disttrain.worlds import StackedWorld, TorchWorld

SIZES = (2, 4, 5)
STEPS = 14

BuildStrategy = Callable[[], Strategy]


class Tied(nn.Module):
    """What a real model may have: a frozen parameter, one that is used twice, and, if ``wide``, two of DDP's buckets."""

    def __init__(self, wide: bool) -> None:
        super().__init__()
        width = 600 if wide else 33
        self.first, self.twice, self.last = nn.Linear(16, width), nn.Linear(width, width, bias=False), nn.Linear(width, 4)
        self.again = self.twice
        self.first.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.again(torch.tanh(self.twice(torch.tanh(self.first(x)))))))


def build_model(wide: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Tied(wide)


def build_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.5)


@dataclass
class Recording:
    """What one process saw: its own gradients and its parameters after every step, ``[steps, d]``; its result; its bytes."""

    gradients: Tensor
    parameters: Tensor
    result: Tensor
    traffic: tuple[int, int]


def record(world: TorchWorld, build_strategy: BuildStrategy, wide: bool) -> Recording:
    """Train in a process of the kit, through DDP's hook and the optimizer's wrapper."""
    world = TorchWorld(debug=True)
    module, strategy = build_model(wide), build_strategy()
    model = attach(module, strategy, world)
    optimizer = StrategyOptimizer(build_optimizer(module), strategy)
    counted = world.traffic.payload_bytes, world.traffic.wire_bytes
    gradients, parameters = [], []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(1000 * step + world.rank)
        inputs, targets = torch.randn(8, 16, generator=generator), torch.randn(8, 4, generator=generator)
        gradients.append(own_gradient(module, strategy, inputs, targets))
        loss(model, inputs, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        parameters.append(strategy.x[0].clone())
    result = strategy.finish().clone()
    traffic = world.traffic.payload_bytes - counted[0], world.traffic.wire_bytes - counted[1]
    return Recording(torch.stack(gradients), torch.stack(parameters), result, traffic)


def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return (model(inputs) - targets).square().mean()


def own_gradient(module: nn.Module, strategy: Strategy, inputs: Tensor, targets: Tensor) -> Tensor:
    """What backward gives without any exchange, laid out like the parameters: ``[d]``."""
    alone = copy.deepcopy(module)
    loss(alone, inputs, targets).backward()
    own = dict(alone.named_parameters())
    gradient = torch.zeros_like(strategy.x[0])
    for unit in strategy.layout.units:
        unit.of(gradient).copy_(own[unit.name].grad)
    return gradient


def replay(gradients: Tensor, build_strategy: BuildStrategy, wide: bool) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Make the same steps on rows; gradients ``[steps, N, d]`` to parameters ``[steps, N, d]``, result and bytes."""
    world, strategy = StackedWorld(gradients.shape[1], debug=True), build_strategy()
    engine = Engine(Replicas(build_model(wide), world.size), strategy, world, build_optimizer)
    counted = world.traffic.payload_bytes, world.traffic.wire_bytes
    parameters = []
    for gradient in gradients:
        engine.step(gradient.clone())
        parameters.append(engine.replicas.x.clone())
    result = strategy.finish()
    traffic = world.traffic.payload_bytes - counted[0], world.traffic.wire_bytes - counted[1]
    return torch.stack(parameters), result, traffic


def compare(recordings: list[Recording], build_strategy: BuildStrategy, tolerance: float, wide: bool) -> float:
    """Assert that rows repeat what processes did; returns the largest relative difference per step."""
    gradients = torch.stack([each.gradients for each in recordings], dim=1)
    processes = torch.stack([each.parameters for each in recordings], dim=1)
    rows, result, traffic = replay(gradients, build_strategy, wide)
    assert not torch.equal(rows[0], rows[-1]), "nothing moved"
    worst = 0.0
    for step, (one, other) in enumerate(zip(processes, rows, strict=True), 1):
        difference = float((one - other).norm() / one.norm()) / step
        worst = max(worst, difference)
        assert difference <= tolerance, f"step {step}: rows and processes differ by {difference:.1e} per step"
        assert tolerance or torch.equal(one, other)
    exported = recordings[0].result  # what worker 0 would write
    assert exported.shape == result.shape
    assert float((exported - result).norm() / exported.norm()) <= STEPS * tolerance
    padding = 4 * len(recordings) * STEPS if wide else 0  # a reducer that cuts vectors into equal parts pads each bucket
    for real, counted in zip(recordings[0].traffic, traffic, strict=True):
        assert abs(real - counted) <= padding, "bytes of worker 0"
    return worst


def record_each(world: TorchWorld, builds: Sequence[BuildStrategy], wide: bool) -> list[Recording]:
    return [record(world, build, wide) for build in builds]


def check_size(by_worker: list[list[Recording]], builds: Sequence[BuildStrategy], tolerance: float, wide: bool) -> float:
    """The worst of all strategies."""
    worst = 0.0
    for build, recordings in zip(builds, zip(*by_worker, strict=True), strict=True):
        try:
            worst = max(worst, compare(list(recordings), build, tolerance, wide))
        except AssertionError as error:
            error.add_note(f"with {len(by_worker)} workers under {build}")
            raise
    return worst


@pytest.fixture
def parity(workers: Callable[..., Any]) -> Callable[..., list[float]]:
    """``parity(*strategies, tolerance=0.0, sizes=(2, 4, 5), wide=False)``; the worst difference per step for each size.

    Several strategies run one after another in the same processes. ``wide`` takes a model of two DDP buckets, which DDP cuts anew
    after its first backward.
    """

    def check(*builds: BuildStrategy, tolerance: float = 0.0, sizes: tuple[int, ...] = SIZES, wide: bool = False) -> list[float]:
        return [check_size(workers(size, record_each, builds, wide), builds, tolerance, wide) for size in sizes]

    return check
