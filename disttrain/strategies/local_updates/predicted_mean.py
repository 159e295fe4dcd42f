"""Predicted mean: workers are pulled to where their mean is likely to be by now, while the exchange that will tell has a round.

Ours. Where a round closes, with x a worker's parameters, x̄⁻ the mean where the last round closed, which has landed by now (it is
the anchor), and v how far the mean moves in a round:

    v ← β v + (1 − β) (x̄⁻⁻ − x̄⁻)        x ← x + pull · (x̄⁻ − v − x)

Over a quadratic whose rounds contract the error by 1 − κ, what an overlapped rule makes of the two things that matter:

- The mean. A rule that goes on from x̄⁻ loses a round's progress or, with momentum, its stability (CO2). x̄⁻ − v is the mean of now
  while it moves evenly, so the pull changes the mean little, and it moves as that of local SGD does.
- The distance ε of a worker from the mean. CoCoD-SGD, which keeps all of a worker's progress, takes back last round's distance,
  most of which the round has shrunk already: ε ← −κ ε + noise, and the noise of many rounds adds up where κ is near 1. Here it is
  ε ← (1 − pull) ((1 − κ) ε + noise): nothing adds up, whatever κ.

Overlap-Local-SGD (arXiv 2002.09539) pulls too, but to an anchor that is left behind.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain.compression.mean import CompressedMean
from disttrain.parameters import Layout
from disttrain.strategies.base import strategies
from disttrain.strategies.local_updates.engine import Inner, LocalUpdates, LocalUpdatesConfig
from disttrain.strategies.local_updates.fragments import Fragment
from disttrain.strategies.local_updates.outer import OuterStep
from disttrain.worlds.world import World


class PredictedMean(LocalUpdates):
    """Average the workers' places a round late, and pull every worker to where that mean will be by now.

    Args:
        period: τ, local steps in a round.
        pull: how far workers are pulled, in (0, 1]: all the way throws away their own last round.
        momentum: β, of the mean's velocity; the newest round counts 1 − β.
        warmup_steps: see :class:`LocalUpdates`.
        compression: see :class:`LocalUpdates`.
        group_size: see :class:`LocalUpdates`.
        inner: see :class:`LocalUpdates`.

    Raises:
        ValueError: if these do not fit together.
    """

    def __init__(
        self,
        period: int,
        pull: float = 0.65,
        momentum: float = 0.7,
        warmup_steps: int = 0,
        compression: CompressedMean | None = None,
        group_size: int = 1,
        inner: Inner = "ddp",
    ) -> None:
        super().__init__(period, OuterStep(), period, warmup_steps, compression=compression, group_size=group_size, inner=inner)
        if not 0 < pull <= 1:
            raise ValueError(f"pull must be more than 0 and at most 1, got {pull}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and less than 1, got {momentum}")
        self.pull, self.velocity_momentum = pull, momentum

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Beside the engine's states: how far the mean moves in a round."""
        super().begin(x, layout, world, seed)
        self.velocity = torch.zeros_like(self.anchor)

    def close(self, fragment: Fragment) -> None:
        """Land the last round's mean, post this one's place, and pull."""
        self._land(fragment)
        self.post(fragment, self.anchor - self.x)
        predicted = (self.anchor - self.velocity).expand_as(self.x)
        self.x.copy_(torch.lerp(self.x.to(self.dtype), predicted, self.pull))

    def drain(self, fragment: Fragment, steps: int) -> None:
        """Land, and average once more where the workers are now."""
        self._land(fragment)
        if steps:
            self.apply(fragment, self.average_now(fragment, self.anchor - self.x))

    def _land(self, fragment: Fragment) -> None:
        landed = self.take(fragment)
        if landed is not None:
            self.velocity.lerp_(landed, 1 - self.velocity_momentum)
            self.apply(fragment, landed)

    @property
    def temporary_copies(self) -> float:
        """Where the workers are pulled to, too."""
        return super().temporary_copies + 1.0

    def _everything(self) -> dict[str, Tensor]:
        return super()._everything() | {"velocity": self.velocity}


@strategies.register
class PredictedMeanConfig(LocalUpdatesConfig):
    """Ours: the whole exchange hidden, and workers pulled to where their mean is likely to be by now."""

    name: Literal["predicted_mean"] = "predicted_mean"
    pull: float = Field(0.65, gt=0, le=1)
    """How far, as a share of the way."""
    velocity_momentum: float = Field(0.7, ge=0, lt=1)
    """β, of the mean's velocity, from which its place is predicted; the newest round counts 1 − β."""

    def build(self) -> PredictedMean:
        """The strategy itself."""
        return PredictedMean(pull=self.pull, momentum=self.velocity_momentum, **self.common)
