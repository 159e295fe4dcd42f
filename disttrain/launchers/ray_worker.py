"""A worker that lives in a Ray actor: the same life as under torchrun, told by calls what torchrun tells by its environment."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.component import UserError
from disttrain.launch.rank_info import RankInfo
from disttrain.launch.shutdown import FAILED, USERS_MISTAKE, StopRequest, describe, leave_world, report_failure
from disttrain.launch.worker_logs import log_stems


@dataclass(frozen=True)
class Place:
    """Where Ray has put an actor."""

    node: str
    """The node's id."""
    address: str
    """Of the node, as Ray knows it."""
    host: str
    """The node's name for itself."""
    gpus: tuple[str, ...]
    """The devices that are this actor's."""


@dataclass(frozen=True)
class Outcome:
    """How a worker ended."""

    code: int
    """Its exit code, if it were a process of its own."""
    kind: str = ""
    """Of a failure; see :func:`~disttrain.launch.shutdown.describe`."""
    reason: str = ""
    """Why it failed, in one line."""


class RayWorker:
    """The actor. Two of its methods run at a time, so that one that trains can be told to stop."""

    def __init__(self) -> None:
        self._stop_request = StopRequest()
        self._store: Any = None

    def place(self) -> Place:
        """Where it is; the first call also tells that it lives."""
        import ray

        context, node = ray.get_runtime_context(), ray.util.get_node_ip_address()
        return Place(context.get_node_id(), node, socket.gethostname(), tuple(map(str, ray.get_gpu_ids())))

    def open_store(self) -> int:
        """Serve the store in which the workers meet, at a port that the system chooses; returns the port."""
        from disttrain.worlds.store import TCPStore

        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return int(self._store.port)

    def stop(self, signal: str) -> None:
        """Save and stop at the next step at which all can."""
        self._stop_request.signal = signal

    def train(self, arguments: Sequence[str], info: RankInfo, variables: Mapping[str, str], logs: str, work: str) -> Outcome:
        """Train from the config to the summary.

        Args:
            arguments: CONFIG and overrides.
            info: this worker among all.
            variables: of the environment, for torch.
            logs: the folder for what it prints, but for worker 0's standard output, which goes to the terminal.
            work: the working directory to which paths are relative.
        """
        os.environ |= variables  # before torch.distributed or CUDA reads them
        os.chdir(work)
        _redirect(Path(logs), info.rank)
        from disttrain.worker import Life

        life = Life(arguments, info, self._stop_request)
        try:
            code = life.run()
        except BaseException as error:
            report_failure(error, info, life.folder)
            kind, reason = describe(error)
            return Outcome(USERS_MISTAKE if isinstance(error, UserError) else FAILED, kind, reason)
        leave_world()
        return Outcome(code)


def _redirect(logs: Path, rank: int) -> None:
    """Standard error goes to ``rankN.log``, standard output to ``rankN.out``; worker 0's stays Ray's, which shows it."""
    logs.mkdir(parents=True, exist_ok=True)
    stem = log_stems(logs, [rank])[rank]
    for stream, suffix in ((sys.stderr, "log"), (sys.stdout, "out")):
        if rank or suffix == "log":
            stream.flush()
            with open(f"{stem}.{suffix}", "wb") as file:
                os.dup2(file.fileno(), stream.fileno())
