"""What error_feedback.py does with exact gradients: the papers' comparisons, each rule at its best step size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from feedback_descent import Descent, Rule, descend, tuned
from feedback_problems import logistic_regression, quadratic

from disttrain.compression import EF14, EF21, EF21SGDM, EF21W, Cast, Compressor, EControl, Feedback, TopK, ef21_step_size

FP32 = Cast("fp32")
DENSE = Rule("dense", None)
LOGISTIC_RULES = (
    DENSE, Rule("no feedback", Feedback()), Rule("EF14", EF14()), Rule("EF21", EF21()), Rule("EControl", EControl())
)  # fmt: skip
QUADRATIC_RULES = (Rule("EF14", EF14()), Rule("EF21", EF21()), Rule("EControl", EControl()))
NOISY_RULES = (DENSE, *QUADRATIC_RULES, Rule("EF21-SGDM", EF21SGDM(0.05)))

LOGISTIC_TARGET, STEP_TARGET = 1e-8, 1e-6
"""‖∇f‖² for which step sizes are tuned, and to which rounds are counted at theoretical ones."""
LOGISTIC_MULTIPLES = tuple(2.0**exponent for exponent in range(11))
QUADRATIC_MULTIPLES = (1 / 8, 1 / 32, 1 / 64, 1 / 128, 1 / 256)
HETEROGENEITIES, NOISES = (0.0, 1.0, 10.0, 100.0), (0.0, 10.0)

ShardedBy = Literal["class", "norm"]


def top_k(k: int, d: int) -> Compressor:
    """Values in float32, so that it is the selection that is looked at, not the rounding."""
    return TopK(k / d, FP32)


def compare_on_logistic_regression(
    rounds: int = 1200, multiples: Sequence[float] = LOGISTIC_MULTIPLES, num_workers: int = 20
) -> list[Descent]:
    """Each rule with top-1 at the best of many multiples of EF21's theoretical step size."""
    problem = logistic_regression(num_workers)
    d = len(problem.start)
    theory = ef21_step_size(problem.smoothness, problem.each, 1 / d, "quadratic")
    return [
        tuned([descend(problem, rule, top_k(1, d), theory, each, rounds, 1e-12) for each in multiples], LOGISTIC_TARGET)
        for rule in LOGISTIC_RULES
    ]


@dataclass(frozen=True)
class LargerStep:
    """EF21 at the step size of the quadratic mean, and of the arithmetic one."""

    sharded_by: ShardedBy
    quadratic: float
    arithmetic: float
    quadratic_rounds: float
    """To ‖∇f‖² ≤ :data:`STEP_TARGET`."""
    arithmetic_rounds: float
    weighted_rounds: float
    """EF21-W's, at the arithmetic step size."""


def compare_steps(sharded_by: ShardedBy, target: float = STEP_TARGET, rounds: int = 40_000, num_workers: int = 20) -> LargerStep:
    """Rounds to a target, each exactly at the step size that is proven."""
    problem = logistic_regression(num_workers, sort_by=sharded_by)
    d = len(problem.start)
    steps = [ef21_step_size(problem.smoothness, problem.each, 1 / d, mean) for mean in ("quadratic", "arithmetic")]
    weighted = EF21W(tuple(problem.each))
    plan = [(EF21(), steps[0]), (EF21(), steps[1]), (weighted, steps[1])]
    took = [
        descend(problem, Rule("", feedback), top_k(1, d), step, 1.0, rounds, target).rounds_to(target) for feedback, step in plan
    ]
    return LargerStep(sharded_by, *steps, *took)


@dataclass(frozen=True)
class Floor:
    """Where a rule came to rest on a quadratic."""

    title: str
    heterogeneity: float
    noise: float
    multiple: float
    """Of 1/L, the best one."""
    floor: float
    """‖∇f‖²."""


def compare_on_quadratics(
    rounds: int = 1500,
    multiples: Sequence[float] = QUADRATIC_MULTIPLES,
    heterogeneities: Sequence[float] = HETEROGENEITIES,
    noises: Sequence[float] = NOISES,
    d: int = 100,
) -> list[Floor]:
    """Each rule with top-k of a tenth at the best of some step sizes, for some heterogeneities ζ and noises σ."""
    floors = []
    for noise in noises:
        for heterogeneity in heterogeneities:
            for rule in NOISY_RULES if noise else QUADRATIC_RULES:
                tries = []
                for multiple in multiples:
                    problem = quadratic(heterogeneity, noise, d=d)  # anew: its noise is drawn from its own generator
                    theory = 1 / problem.smoothness
                    tries.append(descend(problem, rule, top_k(d // 10, d), theory, multiple, rounds, 1e-20))
                best = tuned(tries, 0.0)
                floors.append(Floor(rule.title, heterogeneity, noise, best.multiple, best.floor))
    return floors
