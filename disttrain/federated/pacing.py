"""How fast a curriculum goes from a few samples, or clients, to all of them.

With p = t / (a · (T − 1)), the share of the way, from 0 in the first round to 1 at the share a of the run, and b the share that
is taken at first, the share of samples in round t is b + (1 − b) · s(p), and all of them from p = 1 on::

    linear p    quadratic p²    root √p    step 0
    exponential (e^10p − 1) / (e^10 − 1)    logarithmic 1 + ln(p + e^−10) / 10

The families are those of "When Do Curricula Work?" (arXiv 2012.03107), written down from memory; that the last round has all of
them also for a = 1 is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from pydantic import Field

from disttrain.component import Config

Shape: TypeAlias = Literal["linear", "quadratic", "root", "step", "exponential", "logarithmic"]

RISE: dict[Shape, Callable[[float], float]] = {
    "linear": lambda p: p,
    "quadratic": lambda p: p * p,
    "root": math.sqrt,
    "step": lambda p: 0.0,
    "exponential": lambda p: math.expm1(10 * p) / math.expm1(10),
    "logarithmic": lambda p: min(1.0, max(0.0, 1 + math.log(p + math.exp(-10)) / 10)),
}
"""s: from 0 at 0 to 1 at 1, but for the step, which comes at 1."""
ROUNDING = 1e-9
"""What products of decimal fractions are off by at most: 0.2 · 15 is 3, not a little more."""


class PacingConfig(Config):
    """Which share of samples, or clients, can be drawn in a round."""

    shape: Shape = "linear"
    """How the share rises."""
    start: float = Field(0.2, gt=0, le=1)
    """b, the share in the first round; 1: all of them from the start, which is no curriculum."""
    until: float = Field(0.8, gt=0, le=1)
    """a, the share of the run after which all can be drawn."""

    def __str__(self) -> str:
        return f"{self.shape} from {self.start:.3g} of them to all after {self.until:.3g} of the rounds"

    def share(self, round: int, rounds: int) -> float:
        """In (0, 1], never less than in the round before.

        Args:
            round: t, from 0.
            rounds: T.
        """
        way = self.until * (rounds - 1)
        if round >= way - ROUNDING:
            return 1.0
        return self.start + (1 - self.start) * RISE[self.shape](round / way)

    def count(self, n: int, round: int, rounds: int, least: int = 1) -> int:
        """How many of ``n``, rounded up; never fewer than ``least``, as long as there are so many."""
        return min(n, max(least, math.ceil(self.share(round, rounds) * n - ROUNDING)))
