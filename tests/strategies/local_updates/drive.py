"""Strategies without a model: n workers as rows of one vector, plain gradient descent, and gradients to descend."""

import numpy as np
import torch

from disttrain.parameters import Layout, Unit
from disttrain.worlds import StackedWorld

GAMMA = 0.1


def layout_of(sizes, alignment=1):
    """Vectors of these sizes by name, each at a multiple of ``alignment`` entries."""
    units, offset = [], 0
    for name, size in sizes.items():
        units.append(Unit(name, (size,), offset))
        offset += -(-size // alignment) * alignment
    return Layout(tuple(units), offset)


def whole(d):
    return layout_of({"x": d})


def begun(strategy, n, x0, layout=None, world=None, dtype=torch.float64):
    """The strategy at its start, all workers at ``x0 [d]``."""
    x = torch.as_tensor(x0).to(dtype).repeat(n, 1)
    strategy.begin(x, layout or whole(len(x0)), world or StackedWorld(n, debug=True))
    return strategy


def local_step(strategy, gradient, step, gamma=GAMMA):
    """One step of all workers; ``gradient(worker, step, x)`` as in the references."""
    x = strategy.x
    g = torch.from_numpy(np.array([gradient(worker, step, row.double().numpy()) for worker, row in enumerate(x)])).to(x.dtype)
    assert strategy.before_step()
    x -= gamma * (strategy.world.mean(g) if strategy.gradients_due else g)
    strategy.after_step()


def run(strategy, gradient, x0, n, steps, gamma=GAMMA, layout=None):
    """Live parameters ``[steps, n, d]`` after every step, and the result ``[d]``."""
    begun(strategy, n, x0, layout)
    trace = []
    for step in range(1, steps + 1):
        local_step(strategy, gradient, step, gamma)
        trace.append(strategy.x.numpy().copy())
    return np.array(trace), strategy.finish().numpy()[0]


def recorded(seed, n, steps, d):
    """The same gradients wherever the workers are."""
    g = np.random.default_rng(seed).standard_normal((steps, n, d))
    return lambda worker, step, x: g[step - 1, worker]


def quadratic(seed, n, d, equal_hessians=False):
    """Every worker's own optimum, and its own diagonal Hessian from 0.2 to 4."""
    rng = np.random.default_rng(seed)
    H, optimum = rng.uniform(0.2, 4, (n, d)), rng.standard_normal((n, d))
    return lambda worker, step, x: H[0 if equal_hessians else worker] * (x - optimum[worker])


def start(seed, d):
    return np.random.default_rng(seed + 1).standard_normal(d)


def close(found, expected, tolerance=1e-12):
    """Whether all entries agree, relative to the largest."""
    return found.shape == expected.shape and np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())
