"""K local steps of plain or momentum SGD, which most algorithms have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from disttrain.federated.work import Work

Direction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From minibatch gradients ``[L, d]`` and the points ``[L, d]`` where they were taken to the directions to go against."""


def descend(start: Tensor, work: Work, direction: Direction | None = None, first: int = 0) -> tuple[Tensor, Tensor]:
    """K times y ← y − η_l · direction(∇f_i(y; ξ_k), y), from ``start [L, d]``, which is not changed.

    Args:
        start: where the clients stand.
        work: theirs.
        direction: None: the gradients as they are.
        first: the number of the first step, by which samples are drawn, where a round has several such descents.

    Returns:
        the last points, and the sums of all directions, each ``[L, d]``. With plain steps the latter are (start − y) / η_l, but
        without the rounding, and for any η_l. With the plan's momentum and weight decay, v ← momentum · v + direction + decay · y
        is what is gone against, as in torch.optim.SGD.
    """
    plan, y, total, velocity = work.plan, start, start * 0, torch.zeros(())
    for step in range(first, first + plan.steps):
        gradient = work.gradient(y, step)
        gone = gradient if direction is None else direction(gradient, y)
        total += gone
        if plan.weight_decay:
            gone = gone + plan.weight_decay * y
        if plan.momentum:
            gone = velocity = plan.momentum * velocity + gone
        y = y - plan.lr * gone
    return y, total
