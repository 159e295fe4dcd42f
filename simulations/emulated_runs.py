"""Runs of `disttrain emulate`, kept with the machine's load, and the arithmetic of their records: for overlap.py, thin_link.py.

A record's ``seconds`` and ``exposed_seconds`` count from the start of training. The last record is written after the final
checkpoint, merge and validation, so its ``seconds`` are not training's; its ``exposed_seconds`` are, and hold the drain.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from disttrain.recording.metrics import read_metrics


@dataclass(frozen=True)
class EmulatedRun:
    """What a run has left, and how busy the machine was."""

    records: list[dict[str, Any]]
    """Of ``metrics.jsonl``, at least three."""
    report: dict[str, Any]
    """``emulation.json``."""
    load: list[float]
    """The machine's load average over a minute, before and after."""

    @property
    def measured(self) -> float:
        """Bits per second that the links carry, by the bare all-reduce before the run."""
        return float(self.report["measured_bits_per_second"])

    @property
    def steady(self) -> list[dict[str, Any]]:
        """The intervals between records, each as the increase of every count; start-up, before the first record, and the end,
        after the last but one, are left out."""
        counts = ("step", "tokens", "seconds", "exposed_seconds", "wire_bytes", "communication_seconds")
        pairs = pairwise(self.records[:-1])
        return [{key: after[key] - before.get(key, 0) for key in counts if key in after} for before, after in pairs]

    @property
    def step_seconds(self) -> float:
        """Of a step, by the median."""
        return median(each["seconds"] / each["step"] for each in self.steady)

    @property
    def compute_seconds(self) -> float:
        """Of a step, by the median: what is not exposed communication."""
        return median((each["seconds"] - each["exposed_seconds"]) / each["step"] for each in self.steady)

    @property
    def drain_seconds(self) -> float:
        """Waited for the network at the end, beyond what the same steps wait for in mid-run."""
        last, before = self.records[-1], self.records[-2]
        return max(0.0, self._ending_exposed - self.exposed_seconds * (last["step"] - before["step"]))

    @property
    def exposed_seconds(self) -> float:
        """Of a step, the mean in mid-run."""
        return float(sum(each["exposed_seconds"] for each in self.steady) / sum(each["step"] for each in self.steady))

    @property
    def wire_bytes(self) -> float:
        """Of a step, by the median: a record may come a moment before or after its round's exchange is counted."""
        return median(each["wire_bytes"] / each["step"] for each in self.steady)

    @property
    def whole_step_seconds(self) -> float:
        """A step's part of the whole training, drain included, start-up left out.

        The last steps' own time is not in the records: they count as so much compute as others, and what they waited.
        """
        first, before, last = self.records[0], self.records[-2], self.records[-1]
        ending = (last["step"] - before["step"]) * self.compute_seconds + self._ending_exposed
        return float((before["seconds"] - first["seconds"] + ending) / (last["step"] - first["step"]))

    @property
    def _ending_exposed(self) -> float:
        return float(self.records[-1]["exposed_seconds"] - self.records[-2]["exposed_seconds"])

    @property
    def interface_ratio(self) -> float | None:
        """Bytes that worker 0's interface sent, by ``wire_bytes``; None if training sent none."""
        if not any(each["wire_bytes"] for each in self.steady):
            return None
        return float(self.report["interface_sent_bytes"] / self.report["wire_bytes"])


def emulate(run: Path, config: Path, workers: int, bandwidth: str, arguments: Sequence[str], pin: bool = False) -> EmulatedRun:
    """`disttrain emulate` to its end in the folder ``run``; a run that ended well there before is not made again.

    Args:
        run: the run's folder.
        config: to be run.
        workers: how many.
        bandwidth: of every link.
        arguments: options and overrides.
        pin: give each worker's process, with all its threads, a core of its own.

    Raises:
        SystemExit: with what the run said, if it failed.
    """
    kept = run / "load.json"
    if not kept.exists():
        shutil.rmtree(run, ignore_errors=True)  # one that was broken off
        before = os.getloadavg()[0]
        options = ["--workers", str(workers), "--bandwidth", bandwidth, f"run.directory={run}", *arguments]
        command = [sys.executable, "-m", "disttrain.cli", "emulate", str(config), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if pin:
            threading.Thread(target=pin_workers, args=(process, run, workers), daemon=True).start()
        output, errors = process.communicate()
        if process.returncode:
            sys.exit(f"{' '.join(command)}\n{output}{errors}ended with code {process.returncode}")
        for line in output.splitlines():
            if line.startswith("warning"):
                print(f"  {line}", flush=True)
        kept.write_text(json.dumps([before, os.getloadavg()[0]]))
    report = json.loads((run / "emulation.json").read_text())
    return EmulatedRun(list(read_metrics(run / "metrics.jsonl")), report, json.loads(kept.read_text()))


def pin_workers(process: subprocess.Popen[str], run: Path, workers: int) -> None:
    """Bind worker r of a run to core r before it has threads; theirs is the program, the run's folder is in its arguments."""
    cores, found = sorted(os.sched_getaffinity(0)), set[int]()
    while len(found) < workers and process.poll() is None:
        for place in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (place / "cmdline").read_bytes().split(b"\0")
                if b"disttrain.worker" not in arguments or f"run.directory={run}".encode() not in arguments:
                    continue
                variables = dict(pair.split(b"=", 1) for pair in (place / "environ").read_bytes().split(b"\0") if b"=" in pair)
                rank = int(variables[b"RANK"])
                os.sched_setaffinity(int(place.name), {cores[rank % len(cores)]})
                found.add(rank)
            except (OSError, KeyError):  # it has just ended, or is about to become another program
                continue
        time.sleep(0.05)


def verdict(passed: bool, text: str) -> str:
    """A line of what was asked for, and whether it came out; it is printed too."""
    line = f"{'PASS' if passed else 'FAIL'}  {text}"
    print(line, flush=True)
    return line


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {"cores": os.cpu_count(), "system": platform.release(), "python": platform.python_version(), "torch": version("torch")}
