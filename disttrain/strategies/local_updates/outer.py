"""The outer step: what becomes of the mean of the workers' deltas, as a plain function of vectors.

A delta is what a round has subtracted: the parameters at its start minus those at its end. With Δ the mean delta of a round, m
the outer momentum and α the outer learning rate:

    m ← β m + Δ        x ← x − α clip(m)              heavy ball: SlowMo (arXiv 1910.00643), CO2 (arXiv 2401.16265)
    m ← β m + Δ        x ← x − α clip(Δ + β m)        Nesterov, as torch.optim.SGD has it: DiLoCo (arXiv 2311.08105)

β = 0 and α = 1 average the workers' parameters: local SGD (arXiv 1805.09767). SlowMo's paper divides Δ by the inner learning
rate and multiplies the step by it; here both are left out, as in DiLoCo and in the authors' code of CO2, so that momentum and
clip have the unit of parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

ClipMode = Literal["value", "norm"]


@dataclass(frozen=True)
class Clip:
    """A limit for an outer step's direction.

    Args:
        threshold: φ, in the unit of parameters; None: no limit.
        mode: ``value``: every entry is brought into [−φ, φ]; ``norm``: a longer vector is scaled to the Euclidean length φ.

    Raises:
        ValueError: unless the threshold is positive, for an unknown mode.
    """

    threshold: float | None = None
    mode: ClipMode = "value"

    def __post_init__(self) -> None:
        if self.threshold is not None and not self.threshold > 0:
            raise ValueError(f"the clip threshold must be positive, got {self.threshold}")
        if self.mode not in get_args(ClipMode):
            raise ValueError(f"the clip mode must be one of {', '.join(get_args(ClipMode))}, got {self.mode!r}")

    def __call__(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """A direction ``[R, d]`` within the limit, and which share of it was beyond, ``[R, 1]``: of its entries, or 0 or 1."""
        if self.threshold is None:
            return direction, direction.new_zeros(len(direction), 1)
        if self.mode == "value":
            beyond = (direction.abs() > self.threshold).to(direction.dtype).mean(-1, keepdim=True)
            return direction.clamp(-self.threshold, self.threshold), beyond
        norm = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        return direction * (self.threshold / norm).clamp(max=1.0), (norm > self.threshold).to(direction.dtype)


class Outer(NamedTuple):
    """One outer step."""

    move: Tensor
    """``[R, d]``, to be subtracted from the parameters."""
    momentum: Tensor
    """``[R, d]``, the new one."""


@dataclass(frozen=True)
class OuterStep:
    """An outer learning rate, momentum and clip.

    Args:
        lr: α.
        momentum: β.
        nesterov: whether the step looks ahead by one more momentum.
        clip: of the direction, before α.

    Raises:
        ValueError: unless α is positive and β in [0, 1).
    """

    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False
    clip: Clip = Clip()

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"outer_lr must be positive, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"outer_momentum must be at least 0 and less than 1, got {self.momentum}")

    def step_(self, anchor: Tensor, momentum: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Move an anchor ``[R, d]`` and its momentum in place, without room for more; ``delta [R, d]`` is overwritten.

        Returns:
            the direction ``[R, d]``, of which the anchor went α times, and the share of it that was clipped, ``[R, 1]``.
        """
        direction, clipped = self._direction_(momentum, delta)
        anchor.sub_(direction, alpha=self.lr)
        return direction, clipped

    def __call__(self, delta: Tensor, momentum: Tensor) -> Outer:
        """What a delta ``[R, d]`` would lead to, after a momentum ``[R or 1, d]``, which is not looked at where β is 0."""
        momentum = momentum.expand_as(delta).clone() if self.momentum else momentum
        direction, _ = self._direction_(momentum, delta.clone())
        return Outer(direction if self.lr == 1.0 else self.lr * direction, momentum)

    def _direction_(self, momentum: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The new momentum in place; returns the direction, which may share memory with either, and the share clipped."""
        if not self.momentum:
            return self.clip(delta)
        momentum.mul_(self.momentum).add_(delta)
        return self.clip(delta.add_(momentum, alpha=self.momentum) if self.nesterov else momentum)
