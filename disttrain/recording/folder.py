"""The run folder: which directory it is, and what lies where in it. Scripts rely on the names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from disttrain.component import UserError


class RunFolder:
    """Paths inside a run's directory.

    Args:
        path: the directory; need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics, self.summary = path / "config.yaml", path / "metrics.jsonl", path / "summary.json"
        self.checkpoints, self.logs = path / "checkpoints", path / "logs"
        self.weights, self.loss_plot = path / "model.safetensors", path / "loss.png"
        self.report, self.trace = path / "report.html", path / "trace.json"
        self.partition_plot = path / "partition.png"

    def holds_a_run(self) -> bool:
        """Whether something was trained here before."""
        return self.config.exists() or self.metrics.exists() or self.checkpoints.exists()

    def claim(self, resume: bool) -> None:
        """Create the directory, or check that it may be used.

        Raises:
            UserError: if it holds a run that is not to be continued, or cannot be created.
        """
        if self.holds_a_run() and not resume:
            raise UserError(
                f"run.directory={self.path} holds a run already: continue it by training.resume=auto, or name another directory"
            )
        if self._holds_a_simulation():
            raise UserError(f"run.directory={self.path} holds a simulation, which cannot be continued: name another directory")
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run.directory={self.path} cannot be used: {error.strerror}") from None

    def _holds_a_simulation(self) -> bool:
        try:
            return bool(json.loads(self.summary.read_text()).get("mode") == "simulated")
        except (OSError, ValueError):  # no summary, or none that can be read: what counts then are the checkpoints
            return False

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace ``summary.json`` in one step."""
        write_atomically(self.summary, json.dumps(summary, indent=2) + "\n")


def unused_directory(name: str, parent: Path = Path("runs")) -> Path:
    """``runs/NAME``, or ``runs/NAME-2`` … if that holds something already; it is created, so that nobody else takes it.

    Raises:
        UserError: if ``parent`` cannot be written to.
    """
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"{path} cannot be created: {error.strerror}; set run.directory") from None


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old content or the new, never half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
