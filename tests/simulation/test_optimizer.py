"""One optimizer over stacked rows is one optimizer for each row, bit by bit."""

import pytest
import torch
from torch import nn, optim

from disttrain.optim import AdamWConfig, MuonConfig, SGDConfig
from disttrain.simulation.optimizer import RowOptimizer
from disttrain.simulation.replicas import Replicas

WORKERS, STEPS = 5, 12
BUILDERS = {
    "sgd": SGDConfig(momentum=0.9, nesterov=True, weight_decay=0.1).build,
    "adamw": AdamWConfig().build,
    "muon": MuonConfig().build,
    **{kind.__name__: (lambda module, kind=kind: kind(module.parameters(), lr=0.01))
       for kind in (optim.Adam, optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Adamax, optim.NAdam, optim.RAdam, optim.Rprop,
                    optim.ASGD, optim.Adafactor)},
}  # fmt: skip
ONE_BY_ONE = {"muon", "Adafactor"}


def build_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(13, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def schedule(update):
    return 1 / (1 + update)


def draw(step, d):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(WORKERS, d, generator=generator)


def expected_rows(build, moves):
    """A module and a torch optimizer for each worker."""
    rows = []
    for worker in range(WORKERS):
        replicas = Replicas(build_module(), 1)
        module = replicas.template
        optimizer, updates = build(module), 0
        peaks = [group["lr"] for group in optimizer.param_groups]
        for step in range(STEPS):
            if not moves[step, worker]:
                continue
            gradient = draw(step, replicas.layout.d)[worker]
            for unit in replicas.layout.units:
                module.get_parameter(unit.name).grad = unit.of(gradient).clone()
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(updates)
            optimizer.step()
            updates += 1
        rows.append(replicas.load(replicas._flat.x.clone()) and replicas._flat.x[0].clone())
    return torch.stack(rows)


def stepped_rows(build, moves):
    replicas = Replicas(build_module(), WORKERS)
    optimizer = RowOptimizer(replicas, build, schedule)
    for step in range(STEPS):
        gradient = draw(step, replicas.layout.d)
        for unit, after in zip(replicas.layout.units, [*replicas.layout.units[1:], None], strict=True):
            gradient[:, unit.offset + unit.numel : after.offset if after else None] = 0
        optimizer.step(gradient, moves[step])
    return replicas.x, optimizer


@pytest.mark.parametrize("name", BUILDERS)
def test_rows_equal_single_optimizers(name):
    moves = torch.ones(STEPS, WORKERS, dtype=torch.bool)
    rows, optimizer = stepped_rows(BUILDERS[name], moves)
    assert optimizer.elementwise == (name not in ONE_BY_ONE)
    assert torch.equal(rows, expected_rows(BUILDERS[name], moves))


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "Adam"])
def test_a_worker_that_skips_goes_on_with_its_own_rate_and_counts(name):
    moves = torch.ones(STEPS, WORKERS, dtype=torch.bool)
    moves[3, 1] = moves[4] = moves[6, 2] = moves[7, 2] = False
    rows, optimizer = stepped_rows(BUILDERS[name], moves)
    assert optimizer.updates.tolist() == moves.sum(0).tolist()
    assert not optimizer.elementwise
    assert torch.equal(rows, expected_rows(BUILDERS[name], moves))


def test_one_gradient_moves_all_alike():
    replicas = Replicas(build_module(), WORKERS)
    optimizer = RowOptimizer(replicas, BUILDERS["adamw"], None)
    for step in range(3):
        optimizer.step(draw(step, replicas.layout.d)[:1], torch.ones(WORKERS, dtype=torch.bool))
    assert torch.equal(replicas.x, replicas.x[:1].expand_as(replicas.x))
    assert not torch.equal(replicas.x[0], replicas._flat.x[0])
