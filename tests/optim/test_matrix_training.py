"""Muon, SOAP and COSMOS optimize, also compiled."""

from functools import partial

import pytest
import torch
from contract import each_optimizer, parameters, train
from matrices import gaussian
from torch import nn
from torch._dynamo.testing import CompileCounter

from disttrain.optim import COSMOS, SOAP, Muon
from disttrain.optim.compiled import _compiled

# --- it optimizes ----------------------------------------------------------------------------------------------------


@each_optimizer
def test_a_convex_quadratic_is_minimised(make):
    goal = gaussian(8, 6, seed=9, dtype=torch.float32)
    weight = nn.Parameter(torch.zeros(8, 6))
    optimizer = make([weight], lr=0.1, weight_decay=0.0)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        loss = (weight - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 2e-3 * goal.square().mean()


def loss_after_training(build, steps=120):
    """Of a network of two layers that is to imitate another, on fresh data; ``build`` makes the optimizer of its parameters."""
    teacher = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    student = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    for i, p in enumerate([*teacher.parameters(), *student.parameters()]):
        p.data = gaussian(*p.shape, seed=i, dtype=torch.float32) / max(p.shape) ** 0.5
    optimizer, losses = build(student), []
    base = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * (1 - step / steps)
        x = gaussian(64, 8, seed=100 + step, dtype=torch.float32)
        loss = (student(x) - teacher(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


@pytest.mark.parametrize(
    "make", [partial(Muon, lr=0.02), partial(SOAP, lr=0.02), partial(COSMOS, lr=0.05, rank=4)], ids=["muon", "soap", "cosmos"]
)
def test_a_small_network_learns_about_as_well_as_with_adamw(make):
    def ours(student):
        params = list(student.parameters())
        groups = [
            {"params": [p for p in params if p.ndim == 2], "weight_decay": 0.0},
            {"params": [p for p in params if p.ndim == 1], "algorithm": "adamw", "lr": 0.02, "weight_decay": 0.0},
        ]
        return make(groups)

    untrained = loss_after_training(lambda student: torch.optim.SGD(student.parameters(), lr=0.0))
    adamw = loss_after_training(lambda student: torch.optim.AdamW(student.parameters(), lr=0.02, weight_decay=0.0))
    assert adamw < 0.1 * untrained
    assert loss_after_training(ours) < 1.5 * adamw


# --- compiled --------------------------------------------------------------------------------------------------------


@each_optimizer
def test_a_schedule_does_not_compile_again(make, monkeypatch):
    """Counted with a back end that executes as it is: what compiles is the capture, and what counts is how often."""
    counter, compile_with = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: compile_with(*args, **kwargs, backend=counter))
    _compiled.cache_clear()
    torch._dynamo.reset()
    shapes = [(6, 8), (8, 6)]
    compiled, plain = parameters(shapes=shapes), parameters(shapes=shapes)
    optimizer, eager = make(compiled, compile=True), make(plain)
    captured = []
    for step in range(8):
        for each in (optimizer, eager):
            each.param_groups[0]["lr"] = 0.01 / (1 + step)
        train(optimizer, compiled, [step]), train(eager, plain, [step])
        captured.append(counter.frame_count)
    _compiled.cache_clear()
    assert all(map(torch.equal, compiled, plain))
    assert captured[2] > 0
    assert len(set(captured[2:])) == 1
