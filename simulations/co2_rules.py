"""Outer rules that co2.py tries beyond the papers': all of them hide the exchange behind a whole round.

A worker's round goes from s to y, its delta is d = s − y, means over workers have a bar, what is of the round before has a minus.
When a round closes, what was exchanged of the one before has landed. Where does a worker go on from?

``guessing``: from A − α (β m + e), where A and m are the anchor and the momentum with all deltas that have landed, and e is its
guess at the mean delta of the round that has just closed, with a weight w:

    own         e = w d                     with β = 0: w = 1 is CoCoD-SGD, w = 1/N is Eager DiLoCo without momentum
    blend       e = w d + (1 − w) d̄⁻
    difference  e = d̄⁻ + w (d − d⁻)
    partial     from y + w (A − s) instead, so that workers that are apart come together more slowly; w = 1 is CoCoD-SGD

With w = 1 the mean of e over the workers is the mean delta, so their mean is where SlowMo's is. But how far a worker is from it,
ε = s − s̄, goes on as ε ← −κ ε + noise where a round contracts by 1 − κ: CoCoD-SGD takes back all of a distance that the round has
taken back already, and where κ is near 1 that sums up the noise of all rounds.

``ahead``: the library's ``predicted_mean``, y ← y + pull (ȳ⁻ − lead v − y), with another lead. With lead = 1 workers are pulled
to where their mean is likely to be by now, so the mean moves at full speed, and ε ← (1 − pull) ((1 − κ) ε + noise): nothing sums
up, whatever κ is.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain.parameters import Layout
from disttrain.strategies.base import strategies
from disttrain.strategies.local_updates.engine import LocalUpdatesConfig
from disttrain.strategies.local_updates.fragments import Fragment
from disttrain.strategies.local_updates.one_behind import OneBehind
from disttrain.strategies.local_updates.outer import OuterStep
from disttrain.strategies.local_updates.predicted_mean import PredictedMean, PredictedMeanConfig
from disttrain.worlds.world import World

Guess = Literal["own", "blend", "difference", "partial"]


class Guessing(OneBehind):
    """Workers go on as if the mean of the last round were their guess at it."""

    def __init__(self, period: int, outer: OuterStep, guess: Guess, weight: float, warmup_rounds: int = 0) -> None:
        super().__init__(period, outer, "keep", warmup_rounds=warmup_rounds)
        self.guess, self.weight = guess, weight

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Beside the engine's states: the last mean delta, and each worker's."""
        super().begin(x, layout, world, seed)
        self.last, self.previous = torch.zeros_like(self.anchor), torch.zeros_like(self.start)

    def _apply_stale(self, fragment: Fragment, mean: Tensor) -> None:
        super()._apply_stale(fragment, mean)
        self.last.copy_(mean)

    def _next_start(self, delta: Tensor) -> Tensor:
        if self.guess == "partial":
            return self.x + self.weight * (self.anchor - self.start)
        guess = self.weight * delta
        if self.guess == "blend":
            guess += (1 - self.weight) * self.last
        elif self.guess == "difference":
            guess += self.last - self.weight * self.previous
        self.previous.copy_(delta)
        return self.anchor - self.outer(guess, self.momentum).move


class Ahead(PredictedMean):
    """The same with another lead: by how many rounds the mean is predicted from the newest that has landed."""

    def __init__(self, period: int, pull: float, smoothing: float, warmup_rounds: int, lead: float) -> None:
        super().__init__(period, pull, smoothing, warmup_rounds)
        self.lead = lead

    def prediction(self) -> Tensor:
        """With a lead of 1 that of the library."""
        return self.anchor - self.lead * self.velocity


@strategies.register
class GuessingConfig(LocalUpdatesConfig):
    """See the module's docstring."""

    name: Literal["guessing"] = "guessing"
    outer_lr: float = Field(1.0, gt=0)
    """α."""
    outer_momentum: float = Field(0.0, ge=0, lt=1)
    """β."""
    nesterov: bool = False
    """Whether the outer step looks ahead by one more momentum."""
    guess: Guess = "own"
    """At the mean delta."""
    weight: float = Field(1.0, ge=0, le=1)
    """w."""
    warmup_rounds: int = Field(0, ge=0)
    """Rounds at the start whose exchange is waited for."""

    def build(self) -> Guessing:
        """The strategy itself."""
        outer = OuterStep(self.outer_lr, self.outer_momentum, self.nesterov)
        return Guessing(self.period, outer, self.guess, self.weight, self.warmup_rounds)


@strategies.register
class AheadConfig(PredictedMeanConfig):
    """See the module's docstring."""

    name: Literal["ahead"] = "ahead"  # type: ignore[assignment]
    lead: float = Field(1.0, ge=0)
    """Rounds from the newest mean that has landed to that which workers are pulled to."""

    def build(self) -> Ahead:
        """The strategy itself."""
        return Ahead(self.period, self.pull, self.smoothing, self.warmup_rounds, self.lead)
