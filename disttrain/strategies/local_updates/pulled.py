"""Overlap-Local-SGD: workers are never reset, only pulled towards an anchor that moves a round behind them.

"Overlap Local-SGD: An Algorithmic Approach to Hide Communication Delays in Distributed SGD" (arXiv 2002.09539), with momentum of
the anchor, in the authors' code ``gmf``.
"""

from __future__ import annotations

from typing import Literal, Unpack

from pydantic import Field

from disttrain.strategies.base import strategies
from disttrain.strategies.local_updates.engine import Common, LocalUpdates, LocalUpdatesConfig
from disttrain.strategies.local_updates.fragments import Fragment
from disttrain.strategies.local_updates.outer import OuterStep


class OverlapLocalSGD(LocalUpdates):
    """Where a round closes, the last exchange moves the anchor z, workers go x ← (1 − pull) x + pull z, and post z − x.

    Args:
        period: τ, local steps in a round.
        outer: what becomes of the mean of z − x once it has landed.
        pull: how far workers are pulled towards the anchor, in (0, 1); at 1 nobody would ever get away from it.
        common: of :class:`LocalUpdates`.

    Raises:
        ValueError: if these do not fit together.
    """

    def __init__(self, period: int, outer: OuterStep, pull: float = 0.6, **common: Unpack[Common]) -> None:
        super().__init__(period, outer, delay=period, **common)
        if not 0 < pull < 1:
            raise ValueError(f"pull must be more than 0 and less than 1, got {pull}")
        self.pull = pull

    def close(self, fragment: Fragment) -> None:
        """Land, pull, post."""
        landed = self.take(fragment)
        if landed is not None:
            self.apply(fragment, landed)
        delta = (1 - self.pull) * (self.anchor - self.x)
        self.x.copy_(self.anchor - delta)
        self.post(fragment, delta)

    def drain(self, fragment: Fragment, steps: int) -> None:
        """Land, and average once more where the workers are now."""
        landed = self.take(fragment)
        if landed is not None:
            self.apply(fragment, landed)
        if steps:
            self.apply(fragment, self.average_now(fragment, self.anchor - self.x))


@strategies.register
class OverlapLocalSGDConfig(LocalUpdatesConfig):
    """Workers are pulled towards an anchor, whose exchange has a whole round (arXiv 2002.09539)."""

    name: Literal["overlap_local_sgd"] = "overlap_local_sgd"
    pull: float = Field(0.6, gt=0, lt=1)
    """How far, as a share of the way."""
    outer_momentum: float = Field(0.7, ge=0, lt=1)
    """Of the anchor."""

    def build(self) -> OverlapLocalSGD:
        """The strategy itself."""
        return OverlapLocalSGD(self.period, OuterStep(momentum=self.outer_momentum), self.pull, **self.common)
