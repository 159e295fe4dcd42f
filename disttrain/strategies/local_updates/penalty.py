"""The staleness gap's penalty Λ: by how much a delta counts less because it arrives a round late.

Over a quadratic, with rounds that contract the error by 1 − κ, an outer step with a delta that is a round old is
e' = (1 + β) e − (β + ακ/Λ) e⁻, which is stable only if ακ/Λ < 1 − β. (Without delay it is up to ακ = 2 (1 + β).) κ is near 1
where rounds are long, so a momentum that is fine without delay diverges without a penalty.

CO2's paper (arXiv 2401.16265) divides the stale delta by a staleness gap; its formula was not obtainable. ``gap`` is ours, in the
form of the gap-aware penalty of "Gap Aware Mitigation of Gradient Staleness" (arXiv 1909.10802); ``stable`` is the bound above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from disttrain.strategies.local_updates.outer import OuterStep

PenaltyName = Literal["none", "constant", "gap", "stable"]
SAFETY = 1.5
"""Of ``stable``: Λ is this many times the least one that is stable for κ = 1."""


@dataclass(frozen=True)
class Penalty:
    """How Λ is chosen.

    Args:
        name: ``none``: 1; ``constant``: ``value``; ``gap``: 1 + ‖the anchor's last outer step‖ / ‖stale delta‖;
            ``stable``: ``SAFETY · α / (1 − β)``, but at least 1.
        value: of ``constant``.

    Raises:
        ValueError: for an unknown name, or a value below 1.
    """

    name: PenaltyName = "none"
    value: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in get_args(PenaltyName):
            raise ValueError(f"penalty must be one of {', '.join(get_args(PenaltyName))}, got {self.name!r}")
        if not self.value >= 1:
            raise ValueError(f"penalty_value must be at least 1, got {self.value}")

    def __call__(self, moved: Tensor, delta_norm: Callable[[], Tensor], outer: OuterStep) -> Tensor:
        """Λ ``[1, 1]``, from what is equal on all workers.

        Args:
            moved: ``[1, 1]``, the Euclidean length of the last outer step.
            delta_norm: gives that of the stale delta.
            outer: α and β.
        """
        if self.name == "gap":
            length = delta_norm()
            return 1 + (moved / length).where(length > 0, 0.0)
        return moved.new_full((1, 1), self.expected(outer))

    def expected(self, outer: OuterStep) -> float:
        """Λ in the long run; of ``gap`` while deltas change little, when an outer step is α / (Λ (1 − β)) of them long."""
        if self.name == "gap":
            return (1 + math.sqrt(1 + 4 * outer.lr / (1 - outer.momentum))) / 2
        return {"none": 1.0, "constant": self.value, "stable": max(1.0, SAFETY * outer.lr / (1 - outer.momentum))}[self.name]


def is_stable(outer: OuterStep, penalty: float, contraction: float = 1.0) -> bool:
    """Whether outer steps with deltas that are a round late converge on a quadratic: ακ/Λ < 1 − β.

    Args:
        outer: α and β, without Nesterov's look ahead.
        penalty: Λ.
        contraction: κ: a round shrinks the error to 1 − κ times itself; 1 is the worst case.
    """
    return outer.lr * contraction / penalty < 1 - outer.momentum
