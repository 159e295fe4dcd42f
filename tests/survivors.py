"""Runs that lose workers: real processes forked from the kit's server, under the real supervisor and its store.

def test_it(survivors):
    run = survivors(8, train, config, folder)     # each process calls train(config, folder)
    run.kill(3)
    ending = run.end()
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from disttrain.launch.ending import Ending
from disttrain.launch.processes import Processes
from disttrain.launch.registrar import Registrar
from disttrain.launch.shutdown import FAILED, StopRequest
from disttrain.launch.survival import Supervisor


class Forked:
    """A forked process that looks like one of subprocess."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        self._process.join()


class SurvivorsRun:
    """N processes under a supervisor, in a thread of the test's."""

    def __init__(
        self,
        context: ForkServerContext,
        folder: Path,
        size: int,
        body: tuple[Callable[..., Any], tuple[Any, ...]],
        timeout: float,
        max_restarts: int,
    ) -> None:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self.folder, self.size = folder, size
        self.registrar = Registrar(size, timeout)

        def start(rank: int, life: int) -> Any:
            process = context.Process(target=_worker, args=(rank, size, life, self.registrar.port, folder, *body), daemon=True)
            process.start()
            return Forked(process)

        self.processes = Processes([start(rank, 0) for rank in range(size)])
        self._ending: Ending | None = None
        self._stop = StopRequest()
        supervisor = Supervisor(self.processes, self.registrar, folder, start, max_restarts)
        self._thread = threading.Thread(target=self._supervise, args=(supervisor,), daemon=True)
        self._thread.start()

    def _supervise(self, supervisor: Supervisor) -> None:
        self._ending = supervisor.run(self._stop, time.time())

    def wait_for_step(self, step: int, timeout: float = 120) -> None:
        """Until some worker has told of it."""
        deadline = time.monotonic() + timeout
        while max(self.registrar.record.steps) < step:
            assert self._thread.is_alive(), f"ended before step {step}: {self._ending}\n{self.accounts()}"
            assert time.monotonic() < deadline, f"step {step} not reached\n{self.accounts()}"
            time.sleep(0.005)

    def wait_until_back(self, rank: int, times: int = 1, timeout: float = 60) -> None:
        """Until a rank that was lost so many times has been let in again."""
        deadline = time.monotonic() + timeout
        while len(self.registrar.record.losses.get(rank, ())) < times or rank in self.registrar.record.lost:
            assert self._thread.is_alive(), f"ended before rank {rank} was back: {self._ending}\n{self.accounts()}"
            assert time.monotonic() < deadline, f"rank {rank} is not back\n{self.accounts()}"
            time.sleep(0.005)

    def kill(self, rank: int) -> None:
        self.processes.signal(rank, signal.SIGKILL)

    def freeze(self, rank: int) -> None:
        self.processes.signal(rank, signal.SIGSTOP)

    def thaw(self, rank: int) -> None:
        self.processes.signal(rank, signal.SIGCONT)

    def stop(self) -> None:
        """As if the launcher had got a signal."""
        self._stop.signal = "SIGTERM"

    def end(self, timeout: float = 150) -> Ending:
        self._thread.join(timeout)
        if self._thread.is_alive():
            for rank in range(self.size):
                self.processes.signal(rank, signal.SIGUSR2)
            time.sleep(1)
            raise AssertionError(f"not over after {timeout} s\n{self.accounts()}")
        assert self._ending is not None
        if self._ending.code == FAILED:
            print(self.accounts())
        return self._ending

    def results(self) -> dict[int, Any]:
        """What those that ended well have returned, by rank."""
        paths = sorted(self.folder.glob("*.result"))
        return {int(path.stem): pickle.loads(path.read_bytes()) for path in paths}  # written by this very test

    def accounts(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted((self.folder / "logs").glob("*.txt")))


def _worker(
    rank: int, size: int, life: int, port: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    log = (folder / "logs" / f"{rank}.txt").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.register(signal.SIGUSR2, log, all_threads=True)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "DISTTRAIN_ON_FAILURE": "continue", "DISTTRAIN_LIFE": str(life),
    }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    code = 1
    try:
        result = function(*arguments)
        (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
        code = 0
    except BaseException:
        traceback.print_exc(file=log)
    os._exit(code)


@pytest.fixture
def survivors(server: ForkServerContext, tmp_path: Path) -> Iterator[Callable[..., SurvivorsRun]]:
    """``survivors(n, function, *arguments)``: a :class:`SurvivorsRun`; nothing of it is left after the test.

    ``timeout`` is that of silent workers, ``folder`` what the supervisor takes for the run's, ``max_restarts`` how often lost
    workers are started again.
    """
    runs: list[SurvivorsRun] = []

    def start(
        size: int,
        function: Callable[..., Any],
        *arguments: Any,
        timeout: float = 60.0,
        folder: Path | None = None,
        max_restarts: int = 0,
    ) -> SurvivorsRun:
        folder = folder or tmp_path / f"processes{len(runs)}"
        runs.append(SurvivorsRun(server, folder, size, (function, arguments), timeout, max_restarts))
        return runs[-1]

    yield start
    for run in runs:
        run.processes.kill()
