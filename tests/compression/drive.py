"""The strategy over vectors without a model: n workers as rows, one parameter or several."""

import torch

from disttrain.parameters import Layout, Unit
from disttrain.strategies import Compressed
from disttrain.worlds import StackedWorld


def begun(n, sizes, compressor, feedback, reducer="gather", warmup_steps=0, dtype=torch.float64, seed=0):
    """A strategy for n workers and parameters of these sizes."""
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    units = tuple(Unit(f"p{i}", (d,), sum(sizes[:i])) for i, d in enumerate(sizes))
    layout = Layout(units, sum(sizes))
    strategy = Compressed(compressor, feedback, reducer, warmup_steps)
    strategy.begin(torch.zeros(n, layout.d, dtype=dtype), layout, StackedWorld(n), seed=seed)
    return strategy


def step(strategy, g):
    """One exchange of all parameters' gradients ``[n, d]``: what the optimizer sees, ``[d]``; None if the step is skipped."""
    units = strategy.layout.units
    means = strategy.reduce(units, [unit.of(g) for unit in units])
    return torch.cat([mean[0] for mean in means]) if strategy.before_step() else None


def descend(strategy, gradient, x, gamma, steps):
    """Every x on the way, ``[steps + 1, d]``: plain gradient descent; ``gradient`` maps ``[d]`` to ``[n, d]``."""
    way = [x]
    for _ in range(steps):
        x = x - gamma * step(strategy, gradient(x))
        way.append(x)
    return torch.stack(way)
