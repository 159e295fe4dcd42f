"""One training of compare_optimizers.py: what it changes in the quickstart's config, its process, and what it came to."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from disttrain.recording.metrics import read_metrics

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
WIDTHS = (64, 128)
GRIDS = {  # learning rates
    "adamw": (2e-3, 4e-3, 8e-3, 16e-3),
    "muon": (4e-3, 8e-3, 16e-3, 32e-3),
    "soap": (2e-3, 4e-3, 8e-3, 16e-3),
    "cosmos": (4e-3, 8e-3, 16e-3, 32e-3),
}
PROBE_STEPS = 30
LOG_EVERY = 10  # as often as SOAP turns its bases: every window of the log has one turn
VALIDATIONS, VALIDATION_BATCHES = 6, 20
AT_ONCE = 2


@dataclass(frozen=True)
class Run:
    """What tells one training from another."""

    optimizer: str
    width: int
    lr: float
    adamw_lr: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.optimizer}-{self.width}-lr{self.lr:g}-adamw{self.adamw_lr:g}-seed{self.seed}-{self.steps}"

    def overrides(self, folder: Path) -> list[str]:
        """Of the quickstart's config."""
        own = [] if self.optimizer == "adamw" else [f"optimizer.adamw_lr={self.adamw_lr}"]
        own += [f"optimizer.rank={self.width // 8}"] if self.optimizer == "cosmos" else []
        validate_every = 0 if self.steps == PROBE_STEPS else self.steps // VALIDATIONS
        return [
            *(f"optimizer.name={self.optimizer}", f"optimizer.lr={self.lr}", "optimizer.weight_decay=0", *own),
            *(f"model.width={self.width}", "strategy.name=ddp", "launch.threads=1", "checkpoint.every=0"),
            *(f"training.seed={self.seed}", f"training.steps={self.steps}", f"training.validate_every={validate_every}"),
            *(f"training.validation_batches={VALIDATION_BATCHES}", f"recording.log_every={LOG_EVERY}", f"run.directory={folder}"),
        ]


@dataclass(frozen=True)
class Result:
    """What a run came to; seconds are medians over windows of :data:`LOG_EVERY` steps."""

    run: Run
    validation_loss: float
    """Infinite if it diverged."""
    tokens: int
    step_seconds: float
    optimizer_seconds: float
    load: float
    """The machine's load when it ended: processes that wanted to compute, :data:`AT_ONCE` of them ours."""
    curve: list[tuple[int, float]]
    """Tokens and validation loss."""


def train_all(runs: Sequence[Run], folder: Path) -> list[Result]:
    """Two at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda run: train(run, folder / run.name), runs))


def train(run: Run, folder: Path) -> Result:
    """One run, unless its folder has it already.

    Raises:
        RuntimeError: if it failed otherwise than by diverging.
    """
    if not (folder / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed left
        command = [sys.executable, "-m", "disttrain.cli", "train", str(CONFIG), "--workers", "1"]
        done = subprocess.run([*command, *run.overrides(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode and "diverged" not in done.stdout:
            raise RuntimeError(f"{run.name} failed:\n{done.stdout}")
        (folder / "load.json").write_text(json.dumps(os.getloadavg()[0]))
    result = read_result(run, folder)
    print(f"{time.strftime('%H:%M:%S')} {run.name}: {result.validation_loss:.4f}", flush=True)
    return result


def read_result(run: Run, folder: Path) -> Result:
    """Of a finished or diverged run's folder."""
    records = list(read_metrics(folder / "metrics.jsonl"))
    summary = folder / "summary.json"
    loss = json.loads(summary.read_text())["validation_loss"] if summary.exists() else None
    return Result(
        run,
        math.inf if loss is None else loss,
        tokens=records[-1]["tokens"] if records else 0,
        step_seconds=per_step(records, "seconds"),
        optimizer_seconds=per_step(records, "optimizer_seconds"),
        load=json.loads((folder / "load.json").read_text()),
        curve=[(each["tokens"], each["validation_loss"]) for each in records if each.get("validation_loss") is not None],
    )


def per_step(records: list[dict[str, Any]], key: str) -> float:
    """The median over windows between records: the few that a validation ends are longer, which it does not mind."""
    windows = [(b[key] - a[key]) / (b["step"] - a["step"]) for a, b in pairwise(records)]
    return statistics.median(windows) if windows else math.nan
