"""``disttrain train``: one host's workers under torch's elastic agent, with our exit codes, logs and restarts.

The agent starts the workers, watches them and ends all when one ends. It is not asked to restart them: it would start anew
after a user's mistake and after a wanted stop, and would turn every exit code into 1.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from disttrain.launch.ending import Ending, ending_by_signal, ending_of, start_until_final
from disttrain.launch.shutdown import DONE
from disttrain.launch.worker_logs import log_stems


class WorkerLogs(LogsSpecs):  # type: ignore[misc]
    """Where each worker of the agent writes, by :func:`log_stems`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(log_dir=str(directory))
        self._directory = directory

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """The files of each local rank; an empty name means the terminal."""
        stems = log_stems(self._directory, list(envs))
        return LogsDest(
            stdouts={rank: f"{stem}.out" if rank else "" for rank, stem in stems.items()},
            stderrs={rank: f"{stem}.log" for rank, stem in stems.items()},
            error_files={rank: f"{stem}.torch.json" for rank, stem in stems.items()},
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
    return start_until_final(lambda arguments: _start(arguments, folder, workers), config, overrides, folder, max_restarts)


def _start(arguments: list[str], folder: Path, workers: int) -> Ending:
    started = time.time()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=workers, run_id=uuid.uuid4().hex, max_restarts=0, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", logs_specs=WorkerLogs(folder / "logs"),
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "disttrain.worker", *arguments)
    except ChildFailedError as error:
        return ending_of({rank: failure.exitcode for rank, failure in error.failures.items()}, folder)
    except SignalException as error:
        return ending_by_signal(signal.Signals(error.sigval).name, folder, started)
    return Ending(DONE)
