"""Gradient descent on compressed gradients for error_feedback.py: the library's own strategy, over rows instead of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from feedback_problems import Problem

from disttrain.compression import Compressor, Feedback
from disttrain.parameters import Layout, Unit
from disttrain.strategies.compressed import Compressed
from disttrain.worlds import StackedWorld

LOST = 1e6
"""Times the first ‖∇f‖², from which a descent counts as diverged."""


@dataclass(frozen=True)
class Descent:
    """What came of one step size."""

    title: str
    lr: float
    multiple: float
    """Of the theoretical step size."""
    bits: list[int]
    """Sent by a worker before each round."""
    squared_norms: list[float]
    """‖∇f‖² before each round."""
    target: float
    """At which it was stopped."""

    def rounds_to(self, target: float) -> float:
        """How many it took to ‖∇f‖² ≤ target for the first time; infinite if it never did."""
        return next((number for number, value in enumerate(self.squared_norms) if value <= target), math.inf)

    def bits_to(self, target: float) -> float:
        """What a worker had sent by then."""
        rounds = self.rounds_to(target)
        return math.inf if math.isinf(rounds) else self.bits[int(rounds)]

    @property
    def floor(self) -> float:
        """Where it came to rest: the mean over the last tenth of rounds; the last one's, if that was as low as was asked for;
        infinite if it diverged."""
        if self.squared_norms[-1] <= self.target:
            return self.squared_norms[-1]
        tail = self.squared_norms[-max(1, len(self.squared_norms) // 10) :]
        return sum(tail) / len(tail)


@dataclass(frozen=True)
class Rule:
    """A way to use a compressor."""

    title: str
    feedback: Feedback | None
    """None: gradients are averaged as they are."""

    @property
    def warmup_steps(self) -> int:
        """One dense round, from which estimates begin; what has no estimates needs none."""
        return int(self.feedback is not None and bool(self.feedback.shared))


def descend(
    problem: Problem, rule: Rule, compressor: Compressor, theory: float, multiple: float, rounds: int, target: float = 0.0
) -> Descent:
    """x ← x − γ·(what :class:`Compressed` makes of the gradients), in float64.

    Args:
        problem: what is minimised.
        rule: the feedback; without one, ``compressor`` is not used.
        compressor: of gradients.
        theory: a step size.
        multiple: of it, is γ.
        rounds: at most.
        target: ‖∇f‖² at which to stop.
    """
    d, n = len(problem.start), len(problem.each)
    layout, world = Layout((Unit("x", (d,), 0),), d), StackedWorld(n)
    x = problem.start.expand(n, d).clone()
    dense_bits, sent_bits = 32 * d, 8 * compressor.payload_bytes(d)
    # With as many warm-up rounds as rounds, nothing is ever compressed.
    strategy = Compressed(compressor, rule.feedback or Feedback(), "gather", rule.warmup_steps if rule.feedback else rounds)
    strategy.begin(x, layout, world)
    lr, bits, squared_norms = theory * multiple, [0], []
    for number in range(rounds + 1):
        squared_norms.append(float(problem.exact(x[0]).mean(0).square().sum()))
        if number == rounds or squared_norms[-1] <= target:
            break
        if not squared_norms[-1] <= LOST * squared_norms[0]:
            squared_norms[-1] = math.inf
            break
        (g,) = strategy.reduce(layout.units, [problem.gradients(x[0])])
        assert strategy.before_step(), "finite gradients are never skipped"
        x -= lr * g
        bits.append(bits[-1] + (dense_bits if number < strategy.warmup_steps else sent_bits))
    return Descent(rule.title, lr, multiple, bits, squared_norms, target)


def tuned(tries: Sequence[Descent], target: float) -> Descent:
    """The one that came to the target in the fewest rounds; if none did, the one of the lowest floor."""
    return min(tries, key=lambda each: (each.rounds_to(target), each.floor))
