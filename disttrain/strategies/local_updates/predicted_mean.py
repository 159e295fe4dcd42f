"""Predicted mean: workers are pulled to where their mean is likely to be by now, so the exchange has a whole round to arrive.

Ours. A worker's round ends at x; the mean x̄⁻ of where the workers' last round ended has landed by then. With v the smoothed way
that the mean goes in a round:

    v ← β v + (1 − β) (x̄⁻⁻ − x̄⁻)                x ← x + pull · (x̄⁻ − v − x)

If the prediction x̄⁻ − v is right, the workers' mean stays where it is, and goes on at full speed, while each worker's distance ε
from it becomes (1 − pull) ε. CO2 starts from x̄⁻, and does without the last round; CoCoD-SGD takes x − (s − s̄) with s where
the round began, so ε is what the last two rounds have made of it, and takes back what a round has taken back by itself already;
Overlap-Local-SGD pulls to an anchor that is left behind.
"""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from pydantic import Field
from torch import Tensor

from disttrain.parameters import Layout
from disttrain.strategies.base import strategies
from disttrain.strategies.local_updates.engine import Common, LocalUpdates, LocalUpdatesConfig
from disttrain.strategies.local_updates.fragments import Fragment
from disttrain.strategies.local_updates.outer import OuterStep
from disttrain.worlds.world import World


class PredictedMean(LocalUpdates):
    """The anchor is the newest mean that has landed; workers are never reset to it after the warm-up.

    Args:
        period: τ, local steps in a round.
        pull: how far workers are pulled, as a share of the way, in (0, 1]; at 1 they forget where they were.
        smoothing: β, in [0, 1).
        warmup_rounds: rounds at the start whose exchange is waited for, as in local SGD; v is learned in them.
        common: of :class:`LocalUpdates`.

    Raises:
        ValueError: if these do not fit together.
    """

    def __init__(
        self, period: int, pull: float = 0.65, smoothing: float = 0.7, warmup_rounds: int = 0, **common: Unpack[Common]
    ) -> None:
        super().__init__(period, OuterStep(), delay=period, **common)
        if not (0 < pull <= 1 and 0 <= smoothing < 1):
            raise ValueError(f"pull must be in (0, 1] and smoothing in [0, 1), got {pull} and {smoothing}")
        if warmup_rounds < 0:
            raise ValueError(f"warmup_rounds must not be negative, got {warmup_rounds}")
        self.pull, self.smoothing, self.warmup_rounds = pull, smoothing, warmup_rounds

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Beside the engine's states: how far the mean goes back in a round, v."""
        super().begin(x, layout, world, seed)
        self.velocity = torch.zeros_like(self.anchor)

    def close(self, fragment: Fragment) -> None:
        """Land, post, pull; in the warm-up land this round too, and go on from the mean."""
        self._land(fragment)
        self.post(fragment, self.anchor - self.x)
        if self.steps <= self.warmup_rounds * self.period:
            self._land(fragment)
            self.x.copy_(self.anchor.expand_as(self.x))
        else:
            self.x.copy_(torch.lerp(self.x.to(self.dtype), self.prediction().expand_as(self.x), self.pull))

    def prediction(self) -> Tensor:
        """Where the mean is likely to be, a round after the newest that has landed: ``[1, d]``."""
        return self.anchor - self.velocity

    def drain(self, fragment: Fragment, steps: int) -> None:
        """Land, and average once more where the workers are now."""
        self._land(fragment)
        if steps:
            self.post(fragment, self.anchor - self.x)
            self._land(fragment)

    def _land(self, fragment: Fragment) -> None:
        landed = self.take(fragment)
        if landed is not None:
            self.velocity.lerp_(landed, 1 - self.smoothing)
            self.apply(fragment, landed)

    def _everything(self) -> dict[str, Tensor]:
        return super()._everything() | {"velocity": self.velocity}


@strategies.register
class PredictedMeanConfig(LocalUpdatesConfig):
    """Workers are pulled to where their mean is likely to be by now, so that the exchange has a whole round (ours)."""

    name: Literal["predicted_mean"] = "predicted_mean"
    pull: float = Field(0.65, gt=0, le=1)
    """How far, as a share of the way."""
    smoothing: float = Field(0.7, ge=0, lt=1)
    """β: how slowly the way of the mean in a round, by which it is predicted, follows what has landed."""
    warmup_rounds: int = Field(0, ge=0)
    """Rounds at the start whose exchange is waited for."""

    def check_steps(self, steps: int) -> None:
        """Rounds that are not waited for, too."""
        super().check_steps(steps)
        self.check_rounds(steps, self.warmup_rounds, "local_sgd")

    def build(self) -> PredictedMean:
        """The strategy itself."""
        return PredictedMean(self.period, self.pull, self.smoothing, self.warmup_rounds, **self.common)
