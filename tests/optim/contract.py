"""The optimizers of ours whose contract is tested, a handful of small parameters, and a few deterministic steps."""

import io
from functools import partial

import pytest
import torch
from matrices import gaussian
from torch import nn

from disttrain.optim import COSMOS, SOAP, Muon

OPTIMIZERS = {
    "muon": partial(Muon, lr=0.02),
    "soap": partial(SOAP, lr=3e-3, frequency=2),
    "cosmos": partial(COSMOS, lr=0.01, rank=3),
    "cosmos min": partial(COSMOS, lr=0.01, rank=3, project="min", refresh_every=2),
}
SHAPES = [(6, 8), (8, 6), (6, 8), (5, 5)]
BIAS = (7,)

each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def parameters(dtype=torch.float32, shapes=(*SHAPES, BIAS), seed=0):
    return [nn.Parameter(gaussian(*shape, seed=seed + i).to(dtype)) for i, shape in enumerate(shapes)]


def groups(params):
    """Matrices, and a group for AdamW of everything else."""
    rest = [p for p in params if p.ndim < 2]
    matrices = [{"params": [p for p in params if p.ndim >= 2]}]
    return matrices + ([{"params": rest, "algorithm": "adamw", "lr": 1e-3}] if rest else [])


def give_gradients(params, step, scale=1.0):
    for i, p in enumerate(params):
        p.grad = (scale * gaussian(*p.shape, seed=1000 * step + i)).to(p.dtype)


def train(optimizer, params, steps=range(4)):
    for step in steps:
        give_gradients(params, step)
        optimizer.step()
    return [p.detach().clone() for p in params]


def tensors_of(optimizer, p):
    return {key: value for key, value in optimizer.state[p].items() if isinstance(value, torch.Tensor)}


def everything(optimizer, params):
    """A copy of all that a step may change."""
    state = [{key: value.clone() for key, value in tensors_of(optimizer, p).items()} for p in params]
    return [p.detach().clone() for p in params], state


def same(one, other):
    (params, states), (other_params, other_states) = one, other
    return all(map(torch.equal, params, other_params)) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(states, other_states, strict=True)
    )


def saved(optimizer):
    """Its state dict by way of a file, read as untrusted."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)
