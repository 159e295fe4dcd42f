"""``disttrain train``: one host's workers under torch's elastic agent, with our exit codes, logs and restarts.

The agent starts the workers, watches them and ends all when one ends. It is not asked to restart them: it would start anew
after a user's mistake and after a wanted stop, and would turn every exit code into 1.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from disttrain.launch.shutdown import DONE, FAILED, STOPPED, USERS_MISTAKE


@dataclass(frozen=True)
class Ending:
    """How one start of all workers ended."""

    code: int
    reason: str = ""
    final: bool = True
    """Whether starting the workers again could not help."""


class WorkerLogs(LogsSpecs):  # type: ignore[misc]
    """Worker 0 writes to the terminal; everything else goes to ``logs/rankN.log``, after a first start ``rankN.1.log`` …"""

    def __init__(self, directory: Path) -> None:
        super().__init__(log_dir=str(directory))
        starts = len(list(directory.glob("rank0*.log")))
        self._directory, self._suffix = directory, f".{starts}" if starts else ""

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """The files of each local rank; an empty name means the terminal."""
        path = {rank: str(self._directory / f"rank{rank}{self._suffix}") for rank in envs}
        return LogsDest(
            stdouts={rank: path[rank] + ".out" if rank else "" for rank in envs},
            stderrs={rank: path[rank] + ".log" for rank in envs},
            error_files={rank: path[rank] + ".torch.json" for rank in envs},
        )

    @property
    def root_log_dir(self) -> str:
        """Where the logs are."""
        return str(self._directory)


def train(config: str, overrides: Sequence[str], folder: Path, workers: int, max_restarts: int) -> int:
    """Run ``workers`` processes to their end, starting them again up to ``max_restarts`` times; returns the exit code.

    Args:
        config: the config file.
        overrides: ``a.b=c``; among them ``run.directory``.
        folder: the run folder, which exists.
        workers: on this host.
        max_restarts: after failures; each continues from the newest whole checkpoint.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # our one line names rank and reason first
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # a batch system's early warning
    for attempt in range(max_restarts + 1):
        again = ["training.resume=auto"] if attempt else []
        arguments = [config, *(o for o in overrides if not (again and o.startswith("training.resume="))), *again]
        ending = _run_once(arguments, WorkerLogs(folder / "logs"), folder, workers)
        if ending.final:
            break
        left = max_restarts - attempt
        outlook = f"; starting all workers again, {left} restart{'s' * (left > 1)} left" if left else ""
        print(f"disttrain: {ending.reason}{outlook}", file=sys.stderr, flush=True)
    if ending.final and ending.reason:
        print(f"disttrain: {ending.reason}", file=sys.stderr)
    if ending.code == FAILED:
        print(f"disttrain: logs are in {folder / 'logs'}", file=sys.stderr)
    return ending.code


def _run_once(arguments: list[str], logs: WorkerLogs, folder: Path, workers: int) -> Ending:
    for report in folder.glob("failure.rank*.json"):
        report.unlink()  # of an earlier start
    started = time.time()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=workers, run_id=uuid.uuid4().hex, max_restarts=0, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", logs_specs=logs,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "disttrain.worker", *arguments)
    except ChildFailedError as error:
        return _ending(error.failures, folder)
    except SignalException as error:
        return _after_signal(signal.Signals(error.sigval).name, folder, started)
    return Ending(DONE)


def _ending(failures: dict[int, ProcessFailure], folder: Path) -> Ending:
    """The exit code of the run, and whose fault it was: the worker that did not merely lose another one."""
    if all(failure.exitcode == STOPPED for failure in failures.values()):
        return Ending(STOPPED)
    reports = _reports(folder)
    mistakes = [report for report in reports.values() if report["kind"] == "mistake"]
    if mistakes:
        return Ending(USERS_MISTAKE, mistakes[0]["reason"])
    culprits = [rank for rank in failures if reports.get(rank, {"kind": "died"})["kind"] != "peer"]
    culprits += [rank for rank, report in reports.items() if report["kind"] == "error"]
    rank = (culprits or sorted(failures))[0]
    if rank in reports:
        return Ending(FAILED, f"rank {rank} failed: {reports[rank]['reason']}", final=False)
    code, late = failures[rank].exitcode, [r for r in reports.values() if "Timed out" in r["reason"]]
    if late:
        return Ending(FAILED, f"rank {rank} failed: it did not answer within launch.timeout", final=False)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return Ending(FAILED, f"rank {rank} failed: it {how}", final=False)


def _after_signal(name: str, folder: Path, started: float) -> Ending:
    """The agent has passed the signal on and waited: either the workers saved and stopped, or one says why not."""
    for rank, report in _reports(folder).items():
        return Ending(FAILED, f"stopped by {name}, and rank {rank} could not save: {report['reason']}")
    summary = folder / "summary.json"
    if not summary.exists() or summary.stat().st_mtime < started:
        return Ending(FAILED, f"stopped by {name} before there was anything to save, or before the workers could")
    if json.loads(summary.read_text())["status"] == "finished":
        return Ending(DONE)
    return Ending(STOPPED, f"stopped by {name} and saved")


def _reports(folder: Path) -> dict[int, dict[str, str]]:
    """What failing workers left behind, by rank."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("failure.rank*.json"))]
    return {report["rank"]: report for report in reports}
