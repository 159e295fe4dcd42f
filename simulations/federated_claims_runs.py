"""Runs of federated_claims.py: what they measure, how they are kept, and how learning rates are chosen."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from federated_claims_task import Digits, Task
from torch import Tensor

from disttrain.federated import Algorithm, Availability, BatchedEngine, Federation, Plan

KEPT = Path("runs") / "federated_claims"
LRS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SENSIBLE = 0.8
"""Accuracy below which a small gradient does not count: saturated networks have one, too."""


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Args:
        algorithm: by η_g.
        whole: whether local steps take all that a client has.
        decaying: whether η_l is divided by 1 + round / 100.
    """

    algorithm: Callable[[float], Algorithm]
    whole: bool = False
    decaying: bool = False


@dataclass(frozen=True)
class Regime:
    """Who trains what, how long, and to which goals.

    Args:
        task: what clients have.
        cohort: S.
        steps: K.
        batch: samples of a local step.
        rounds: of a run.
        every: rounds from one measurement to the next.
        goals: scores that are to be reached, by name; None: the mean of the last 20 measurements, as high as may be.
        entries: lines of the table.
        server_lrs: of η_g, all tried.
    """

    task: Task
    cohort: int
    steps: int
    batch: int
    rounds: int
    every: int
    goals: dict[str, float | None]
    entries: dict[str, Entry]
    server_lrs: tuple[float, ...] = (1.0, 3.0)

    @property
    def by_gradient(self) -> bool:
        """Whether a score is −log₁₀ ‖∇f‖² of the global training loss; otherwise it is accuracy on digits held out."""
        return self.task.smooth

    def score(self, problem: Digits, x: Tensor) -> float:
        """Of a model ``[d]``; the higher the better."""
        accuracy = problem.accuracy(x)
        if not self.by_gradient:
            return accuracy
        norm = problem.squared_norm(x) if accuracy >= SENSIBLE else 1.0
        return -math.log10(norm) if math.isfinite(norm) else 0.0


@dataclass(frozen=True)
class Run:
    """One training, measured every few rounds: scores, and what had been spent by then."""

    lr: float
    server_lr: float
    seed: int
    every: int
    scores: list[float]
    bytes_up: list[int]
    gradients: list[int]

    @property
    def end(self) -> float:
        """Mean of the last 20 scores."""
        return statistics.mean(self.scores[-20:])

    def arrival(self, level: float | None) -> int | None:
        """The measurement at which the mean of three was at the level, or the last; None: never."""
        if level is None:
            return len(self.scores) - 1
        means = (statistics.mean(self.scores[number - 2 : number + 1]) for number in range(2, len(self.scores)))
        return next((number for number, mean in enumerate(means, 2) if mean >= level), None)


@dataclass(frozen=True)
class Result:
    """One row of docs/federated_claims.json.

    Args:
        regime: see federated_claims.py.
        name: of the entry.
        goal: of the regime, for which the learning rates were chosen.
        lr: η_l.
        server_lr: η_g.
        seed: of data, model, cohorts and samples.
        end: mean of the last 20 measurements.
        rounds: to the goal; None: never.
        megabytes_up: until then.
        gradients: of single samples, until then.
    """

    regime: str
    name: str
    goal: str
    lr: float
    server_lr: float
    seed: int
    end: float
    rounds: int | None
    megabytes_up: float | None
    gradients: int | None


def result_of(regime: str, name: str, goal: str, level: float | None, run: Run) -> Result:
    """What it took to the goal."""
    there = run.arrival(level)
    if there is None:
        return Result(regime, name, goal, run.lr, run.server_lr, run.seed, run.end, None, None, None)
    spent = (there + 1) * run.every, run.bytes_up[there] / 1e6, run.gradients[there]
    return Result(regime, name, goal, run.lr, run.server_lr, run.seed, run.end, *spent)


def train(regime: Regime, entry: Entry, lr: float, server_lr: float, seed: int) -> Run:
    """One run; where nobody's answer is finite any more it ends, with a score of 0."""
    problem, algorithm = Digits(regime.task, seed, entry.whole), entry.algorithm(server_lr)
    batch = int(problem.sizes[0]) if entry.whole else regime.batch
    plan = Plan(regime.task.clients, seed, regime.steps, lr, batch)
    federation = Federation(
        algorithm,
        problem.start,
        BatchedEngine(algorithm, problem),
        plan,
        Availability(regime.cohort),
        problem.sizes,
        lr=(lambda number: lr / (1 + number / 100)) if entry.decaying else None,
    )
    run = Run(lr, server_lr, seed, regime.every, [], [], [])
    for number in range(1, regime.rounds + 1):
        diverged = federation.step().void
        if number % regime.every == 0 or diverged:
            times = 20 if diverged else 1  # as many as the end is a mean of
            run.scores.extend([0.0 if diverged else regime.score(problem, federation.x)] * times)
            run.bytes_up.extend([federation.totals.bytes_up] * times)
            run.gradients.extend([federation.totals.evaluations] * times)
        if diverged:
            break
    return run


@dataclass
class Runs:
    """Runs of one entry, each made once: kept in a folder, so that a second call goes on.

    Args:
        name: of regime and entry.
        regime: where they train.
        entry: what.
        deadline: of ``time.monotonic()``, after which no run is begun.
    """

    name: str
    regime: Regime
    entry: Entry
    deadline: float

    def get(self, lr: float, server_lr: float, seed: int) -> Run:
        """One of them.

        Raises:
            TimeoutError: if there is no time left.
        """
        kept = KEPT / f"{self.name.replace(' ', '_')}-{lr:g}-{server_lr:g}-{seed}.json"
        if kept.exists():
            return Run(**json.loads(kept.read_text()))
        if time.monotonic() > self.deadline:
            raise TimeoutError(self.name)
        run = train(self.regime, self.entry, lr, server_lr, seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(run)))
        return run

    def tried(self, server_lr: float, start: Sequence[float] = (0.03, 0.1, 0.3)) -> list[Run]:
        """On seed 0, by learning rate: as many as it takes until the best for each goal has a worse one on either side."""
        first, last = LRS.index(start[0]), LRS.index(start[-1])
        while True:
            runs = [self.get(lr, server_lr, 0) for lr in LRS[first : last + 1]]
            bests = [runs.index(best(runs, level)) for level in self.regime.goals.values()]
            lower, higher = min(bests) == 0 and first > 0, max(bests) == len(runs) - 1 and last < len(LRS) - 1
            if not (lower or higher):
                return runs
            first, last = first - lower, last + higher


def best(runs: Iterable[Run], level: float | None) -> Run:
    """The first to arrive, then the best at the end."""

    def order(run: Run) -> tuple[float, float]:
        there = run.arrival(level)
        return (math.inf if there is None else there * run.every if level is not None else 0, -run.end)

    return min(runs, key=order)
