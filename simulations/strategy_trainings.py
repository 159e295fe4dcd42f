"""Trainings of a study: a task, a strategy with its settings, a round's length and a seed; its simulation, what it came to."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from feedback_trainings import Task, simulate

from disttrain.launch.shutdown import stop_with_parent
from disttrain.recording.metrics import read_metrics

WITHOUT_ROUNDS = ("ddp", "local")
"""Strategies that have no ``period``."""


@dataclass(frozen=True)
class Method:
    """A strategy and its settings, but for the period."""

    strategy: str
    settings: tuple[str, ...] = ()
    """Such as ``outer_momentum=0.2``."""

    @property
    def name(self) -> str:
        """Unique, and fit for a folder."""
        return "-".join([self.strategy, *self.settings])

    def having(self, setting: str) -> Method:
        """The same with one setting more."""
        return replace(self, settings=(*self.settings, setting))


@dataclass(frozen=True)
class Training:
    """What tells one training from another."""

    task: Task
    method: Method
    period: int
    """τ; those of :data:`WITHOUT_ROUNDS` have none."""
    lr: float
    """The inner one."""
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Of its folder."""
        tau = "" if self.method.strategy in WITHOUT_ROUNDS else f"-tau{self.period}"
        return f"{self.task.name}-{self.method.name}{tau}-lr{self.lr:g}-seed{self.seed}-{self.steps}"

    def overrides(self, folder: Path) -> list[str]:
        """Of the task's config."""
        period = [] if self.method.strategy in WITHOUT_ROUNDS else [f"period={self.period}"]
        return [
            *self.task.settings,
            f"strategy.name={self.method.strategy}",
            *(f"strategy.{setting}" for setting in (*period, *self.method.settings)),
            f"optimizer.lr={self.lr}",
            *(f"training.steps={self.steps}", f"training.seed={self.seed}"),
            *("checkpoint.every=0", "launch.threads=1", f"run.directory={folder}"),
        ]


@dataclass(frozen=True)
class Result:
    """What a training came to."""

    training: Training
    loss: float
    """In validation, of what the strategy exports; infinite if it diverged."""
    wire_bytes: int
    """Sent by a worker."""
    seconds: float
    curve: list[tuple[int, float]]
    """Steps and validation loss."""
    summary: dict[str, Any]
    """All that the simulation's last record and its summary.json say."""


class Trainer:
    """Makes trainings, some at a time, and none that it has made before.

    Args:
        folder: where they are kept.
        deadline: seconds since the epoch; none begins that would likely end later.
        at_once: processes, of one thread each.

    Attributes:
        left_out: names of trainings for which there was no time.
    """

    def __init__(self, folder: Path, deadline: float, at_once: int) -> None:
        self.folder, self.deadline, self.left_out = folder, deadline, list[str]()
        self._pool = ProcessPoolExecutor(at_once, get_context("spawn"), stop_with_parent)  # or a killed study would train on

    def __call__(self, trainings: Sequence[Training]) -> list[Result]:
        """The results of those that were made, in their order."""
        found = list(self._pool.map(train, trainings, [self.folder] * len(trainings), [self.deadline] * len(trainings)))
        self.left_out += [training.name for training, result in zip(trainings, found, strict=True) if result is None]
        return [result for result in found if result is not None]

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


def train(training: Training, parent: Path, deadline: float) -> Result | None:
    """One simulation, unless its folder has it already; None if there is no time for it."""
    folder = parent / training.name
    if not (folder / "ended.json").exists():
        if time.time() + longest(training.task, parent) > deadline:
            return None
        shutil.rmtree(folder, ignore_errors=True)  # what one that was killed left
        folder.mkdir(parents=True)
        with (folder / "said.txt").open("w") as said, redirect_stdout(said):
            ended = simulate(training.task, training.overrides(folder / "run"), folder / "run")
        (folder / "ended.json").write_text(json.dumps(ended))
        result = read_result(training, folder)
        print(f"{time.strftime('%H:%M:%S')} {training.name}: {result.loss:.4f}, {result.seconds:.0f} s", flush=True)
    return read_result(training, folder)


def longest(task: Task, parent: Path) -> float:
    """Seconds that a training of the task has taken at most so far."""

    def seconds() -> Iterator[float]:
        for path in parent.glob(f"{task.name}-*/ended.json"):
            yield json.loads(path.read_text())["seconds"]

    return max(seconds(), default=0.0)


def read_result(training: Training, folder: Path) -> Result:
    """Of a training that has ended, well or not."""
    ended = json.loads((folder / "ended.json").read_text())
    loss = ended.get("validation_loss")
    records = list(read_metrics(folder / "run" / "metrics.jsonl"))
    return Result(
        training,
        math.inf if loss is None else loss,
        ended.get("wire_bytes", 0),
        ended["seconds"],
        [(each["step"], each["validation_loss"]) for each in records if each.get("validation_loss") is not None],
        (records[-1] if records else {}) | ended,
    )
