"""What goes through ``torch.compile`` gives the same numbers, and is compiled once."""

import functools
import math

import pytest
import torch
from torch import nn

from disttrain.optim import COSMOS, SOAP, Muon
from disttrain.optim.compiled import _compiled

KINDS = {
    "muon": lambda params, **how: Muon(params, lr=0.02, ns_dtype=torch.float32, **how),
    "soap": lambda params, **how: SOAP(params, lr=3e-3, frequency=2, **how),
    "cosmos": lambda params, **how: COSMOS(params, lr=0.02, rank=4, ns_dtype=torch.float32, **how),
}


def matrices():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(12, 8), (12, 8), (8, 16)]]


def step(parameters, optimizer, number):
    generator = torch.Generator().manual_seed(number)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.param_groups[0]["lr"] *= math.cos(number / 10)  # a schedule
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])  # a minute of a C++ compiler
def test_compiled_equals_eager_and_a_schedule_compiles_nothing_anew(kind, backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    _compiled.cache_clear()
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    eager, compiled = matrices(), matrices()
    optimizers = KINDS[kind](eager), KINDS[kind](compiled, compile=True)
    for number in range(7):
        step(eager, optimizers[0], number)
        step(compiled, optimizers[1], number)
        if number == 2:  # SOAP's first gradient is no update
            graphs = counters["stats"]["unique_graphs"]
            assert graphs >= 2, "one for each shape, or nothing was compiled"
    assert counters["stats"]["unique_graphs"] == graphs
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(eager, compiled, strict=True))


def test_more_shapes_than_torchs_limit_of_recompilations(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    _compiled.cache_clear()
    torch._dynamo.reset()
    parameters = [nn.Parameter(torch.ones(4, 3 + number)) for number in range(10)]
    optimizer = Muon(parameters, compile=True)
    step(parameters, optimizer, 0)
    assert not any(torch.equal(p, torch.ones_like(p)) for p in parameters)
