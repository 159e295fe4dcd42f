"""K local steps of plain or momentum SGD, which most algorithms have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from disttrain.federated.work import Work

Direction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From minibatch gradients ``[L, d]`` and the points ``[L, d]`` where they were taken to the directions to go against."""


def descend(start: Tensor, work: Work, direction: Direction | None = None, first: int = 0) -> Tensor:
    """The last of K times y ← y − η_l · direction(∇f_i(y; ξ_k), y), ``[L, d]``.

    With the plan's momentum and weight decay, v ← momentum · v + direction + decay · y is what is gone against, as in
    torch.optim.SGD.

    Args:
        start: ``[L, d]``, where the clients stand; not changed.
        work: theirs.
        direction: None: the gradients as they are.
        first: the number of the first step, by which samples are drawn, where a round has several such descents.
    """
    plan, y, velocity = work.plan, start, torch.zeros(())
    for step in range(first, first + plan.steps):
        gradient = work.gradient(y, step)
        gone = gradient if direction is None else direction(gradient, y)
        if plan.weight_decay:
            gone = gone + plan.weight_decay * y
        if plan.momentum:
            gone = velocity = plan.momentum * velocity + gone
        y = y - scaled(gone, plan.lr, gone is gradient)
    return y


def sum_of_directions(start: Tensor, work: Work, direction: Direction | None = None) -> Tensor:
    """The sums ``[L, d]`` of the directions of K plain steps as in :func:`descend`.

    That is (start − y) / η_l, but without the rounding, and for any η_l.
    """
    plan, y, total = work.plan, start, torch.zeros_like(start)
    for step in range(plan.steps):
        gradient = work.gradient(y, step)
        gone = gradient if direction is None else direction(gradient, y)
        total += gone
        if step + 1 < plan.steps:
            y = y - scaled(gone, plan.lr, gone is gradient)
    return total


def scaled(x: Tensor, factor: float, in_place: bool) -> Tensor:
    """x times a number; in place where x is nobody else's, such as a gradient, which saves a pass over memory."""
    return x.mul_(factor) if in_place else factor * x
