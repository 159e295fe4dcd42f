"""Trainings of error_feedback.py: what each changes in a config of the repository, its simulation, and what it came to."""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.config import load_config
from disttrain.launch.shutdown import StopRequest
from disttrain.recording.folder import RunFolder
from disttrain.recording.metrics import read_metrics
from disttrain.simulation.gradients import Method
from disttrain.simulation.run import Diverged, SimulateOptions, Simulation, check

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Task:
    """What is trained, the same for every method."""

    name: str
    config: str
    """In ``configs/``."""
    workers: int
    gradients: Method
    """How they are computed: the fastest, so that none has to be tried."""
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """A task, a way to average gradients, and a learning rate."""

    task: Task
    method: str
    """``dense``, or a feedback's name in a config."""
    lr: float
    steps: int
    seed: int = 0
    ratio: float = 0.01
    warmup_steps: int = 0
    reducer: str = "gather"
    compressor: str = "block_top_k"
    """``ratio`` is for this one only."""
    settings: tuple[str, ...] = ()
    """Of the optimizer and the feedback."""

    @property
    def name(self) -> str:
        """Of its folder."""
        compressed = "" if self.method == "dense" else f"-{self.ratio:g}-warmup{self.warmup_steps}"
        for value, default in ((self.reducer, "gather"), (self.compressor, "block_top_k")):
            compressed += "" if value == default else f"-{value}"
        own = "".join(f"-{setting.split('.', 1)[1]}" for setting in self.settings)
        return f"{self.task.name}-{self.method}{compressed}-lr{self.lr:g}{own}-seed{self.seed}-{self.steps}"

    def overrides(self, folder: Path) -> list[str]:
        """Of the task's config. A block of 100 makes 1 % and 3 % whole numbers of entries."""
        strategy = ["strategy.name=ddp"]
        if self.method != "dense":
            strategy = ["strategy.name=compressed", f"strategy.compressor.name={self.compressor}"]
            if self.compressor == "block_top_k":
                strategy += [f"strategy.compressor.ratio={self.ratio}", "strategy.compressor.block=100"]
            strategy += [f"strategy.feedback.name={self.method}", f"strategy.reducer={self.reducer}"]
            strategy += [f"strategy.warmup_steps={self.warmup_steps}"]
        return [
            *self.task.settings,
            *strategy,
            *self.settings,
            *(f"optimizer.lr={self.lr}", f"training.steps={self.steps}", f"training.seed={self.seed}"),
            *(f"training.validate_every={max(1, self.steps // 4)}", "checkpoint.every=0", "launch.threads=1"),
            f"run.directory={folder}",
        ]


@dataclass(frozen=True)
class Result:
    """What a training came to."""

    training: Training
    loss: float
    """In validation; infinite if it diverged."""
    accuracy: float | None
    wire_bytes: int
    """Sent by a worker."""
    ddp_wire_bytes: int
    """What DDP would have sent."""
    seconds: float
    curve: list[tuple[int, int, float]]
    """Steps, bytes sent and validation loss."""


def is_kept(training: Training, parent: Path) -> bool:
    """Whether it was made before."""
    return (parent / training.name / "ended.json").exists()


def train(training: Training, parent: Path) -> Result:
    """One simulation, unless its folder has it already."""
    folder = parent / training.name
    if not is_kept(training, parent):
        shutil.rmtree(folder, ignore_errors=True)  # what one that was killed left
        folder.mkdir(parents=True)
        with (folder / "said.txt").open("w") as said, redirect_stdout(said):
            ended = simulate(training.task, training.overrides(folder / "run"), folder / "run")
        (folder / "ended.json").write_text(json.dumps(ended))
        result = read_result(training, folder)
        accuracy = "" if result.accuracy is None else f", accuracy {result.accuracy:.2%}"
        print(f"{time.strftime('%H:%M:%S')} {training.name}: {result.loss:.4f}{accuracy}, {result.seconds:.0f} s", flush=True)
    return read_result(training, folder)


def simulate(task: Task, overrides: list[str], folder: Path) -> dict[str, Any]:
    """``disttrain simulate``, in this process; its summary, or how long it took to diverge."""
    start = time.monotonic()
    loaded = load_config(str(CONFIGS / task.config), overrides)
    options = SimulateOptions(task.workers, gradients=task.gradients)
    check(loaded, options)
    run = RunFolder(folder)
    run.claim(resume=False)
    try:
        return Simulation(loaded, options, run, StopRequest()).run()
    except Diverged:
        return {"seconds": time.monotonic() - start}


def read_result(training: Training, folder: Path) -> Result:
    """Of a training that has ended, well or not."""
    ended = json.loads((folder / "ended.json").read_text())
    loss = ended.get("validation_loss")
    records = [each for each in read_metrics(folder / "run" / "metrics.jsonl") if each.get("validation_loss") is not None]
    return Result(
        training,
        math.inf if loss is None else loss,
        None if loss is None else ended.get("validation_accuracy"),
        ended.get("wire_bytes", 0),
        ended.get("ddp_wire_bytes", 0),
        ended["seconds"],
        [(each["step"], each["wire_bytes"], each["validation_loss"]) for each in records],
    )
