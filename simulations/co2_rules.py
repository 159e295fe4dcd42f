"""Outer rules that co2.py tries beyond the papers': all of them hide the exchange behind a whole round.

A worker goes on from A − α (β m + e), where A and m are the anchor and the momentum with all that has landed, and e is its guess
at the mean delta of the round that has just closed, whose exchange has only begun. With d its own delta of that round, D the mean
delta of the round before, which has just landed, and w a weight:

    own         e = w d                 with β = 0: w = 1 is CoCoD-SGD, w = 1/N is Eager DiLoCo without momentum
    blend       e = w d + (1 − w) D
    difference  e = D + w (d − d⁻)      d⁻ its own delta of the round before

With w = 1 the mean of e over the workers is the mean delta, so their mean is where SlowMo's is.
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
from disttrain.worlds.world import World

Guess = Literal["own", "blend", "difference"]


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
        guess = self.weight * delta
        if self.guess == "blend":
            guess += (1 - self.weight) * self.last
        elif self.guess == "difference":
            guess += self.last - self.weight * self.previous
        self.previous.copy_(delta)
        return self.anchor - self.outer(guess, self.momentum).move


@strategies.register
class GuessingConfig(LocalUpdatesConfig):
    """Any of them."""

    name: Literal["guessing"] = "guessing"
    outer_lr: float = Field(1.0, gt=0)
    """α."""
    outer_momentum: float = Field(0.0, ge=0, lt=1)
    """β."""
    nesterov: bool = False
    """Whether the outer step looks ahead by one more momentum."""
    guess: Guess = "own"
    """See above."""
    weight: float = Field(1.0, ge=0, le=1)
    """w."""
    warmup_rounds: int = Field(0, ge=0)
    """Rounds at the start whose exchange is waited for."""

    def build(self) -> Guessing:
        """The strategy itself."""
        outer = OuterStep(self.outer_lr, self.outer_momentum, self.nesterov)
        return Guessing(self.period, outer, self.guess, self.weight, self.warmup_rounds)
