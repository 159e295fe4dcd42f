"""How one start of all workers ended: the exit code, whose fault it was, and whether to start again."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from disttrain.launch.shutdown import DONE, FAILED, STOPPED, USERS_MISTAKE


@dataclass(frozen=True)
class Ending:
    """How one start of all workers ended."""

    code: int
    reason: str = ""
    final: bool = True
    """Whether starting the workers again could not help."""
    wanted: bool = False
    """Whether a new start was asked for, rather than needed: it does not count as a restart after a failure."""


def start_until_final(
    start: Callable[[list[str]], Ending], config: str, overrides: Sequence[str], folder: Path, max_restarts: int
) -> int:
    """Start all workers, again up to ``max_restarts`` times after failures; says what happened and returns the exit code.

    Args:
        start: runs the workers to their end; takes their arguments.
        config: the config file.
        overrides: ``a.b=c``; among them ``run.directory``.
        folder: the run folder.
        max_restarts: after failures; each continues from the newest whole checkpoint.
    """
    left, arguments = max_restarts, [config, *overrides]
    while True:
        forget_reports(folder)
        ending = start(arguments)
        if ending.final or not (left or ending.wanted):
            break
        count = "" if ending.wanted else f", {left} restart{'s' * (left > 1)} left"
        print(f"disttrain: {ending.reason}; starting all workers again{count}", file=sys.stderr, flush=True)
        left -= not ending.wanted
        arguments = [config, *(o for o in overrides if not o.startswith("training.resume=")), "training.resume=auto"]
    return say_ending(ending, folder)


def say_ending(ending: Ending, folder: Path) -> int:
    """Say how a run ended; returns its exit code."""
    if ending.reason:
        print(f"disttrain: {ending.reason}", file=sys.stderr)
    if ending.code == FAILED:
        print(f"disttrain: logs are in {folder / 'logs'}", file=sys.stderr)
    return ending.code


def ending_of(failures: Mapping[int, int], folder: Path) -> Ending:
    """The exit code of the run, and whose fault it was: the worker that did not merely lose another one.

    Args:
        failures: exit codes by rank, of the workers that did not end well; the likeliest culprit first.
        folder: where failing workers have left their reports.
    """
    if all(code == STOPPED for code in failures.values()):
        return Ending(STOPPED)
    reports = _reports(folder)
    mistakes = [report for report in reports.values() if report["kind"] == "mistake"]
    if mistakes:
        return Ending(USERS_MISTAKE, mistakes[0]["reason"])
    culprits = [rank for rank in failures if reports.get(rank, {"kind": "died"})["kind"] != "peer"]
    culprits += [rank for rank, report in reports.items() if report["kind"] == "error"]
    rank = (culprits or sorted(failures))[0]
    late = [r for r in reports.values() if "timed out" in r["reason"].lower()]
    if late and rank not in reports:
        return Ending(FAILED, f"rank {rank} failed: it did not answer within launch.timeout", final=False)
    return Ending(FAILED, f"rank {rank} failed: {reason_of(rank, failures[rank], folder)}", final=False)


def reason_of(rank: int, code: int, folder: Path) -> str:
    """Why a worker did not end well: by its own report, else by its exit code."""
    reports = _reports(folder)
    if rank in reports:
        return reports[rank]["reason"]
    return f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"


def ending_by_signal(name: str, folder: Path, started: float) -> Ending:
    """The signal was passed on and the workers were given time: either they saved and stopped, or one says why not.

    Args:
        name: of the signal.
        folder: the run folder.
        started: when the workers were, in seconds of ``time.time()``.
    """
    for rank, report in _reports(folder).items():
        return Ending(FAILED, f"stopped by {name}, and rank {rank} could not save: {report['reason']}")
    summary = folder / "summary.json"
    if not summary.exists() or summary.stat().st_mtime < started:
        return Ending(FAILED, f"stopped by {name} before there was anything to save, or before the workers could")
    if json.loads(summary.read_text())["status"] == "finished":
        return Ending(DONE)
    return Ending(STOPPED, f"stopped by {name} and saved")


def forget_reports(folder: Path, rank: int | None = None) -> None:
    """Remove what failing workers of an earlier start have left, or one of them."""
    for report in folder.glob(f"failure.rank{'*' if rank is None else rank}.json"):
        report.unlink()


def _reports(folder: Path) -> dict[int, dict[str, str]]:
    """What failing workers left behind, by rank."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("failure.rank*.json"))]
    return {report["rank"]: report for report in reports}
