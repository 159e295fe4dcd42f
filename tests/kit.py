"""Run a function as N workers over gloo: real processes, forked from a server that has imported torch once.

    def gathers_in_worker_order(world):
        return world.gather(world.ids[None].float()).flatten().tolist()

    def test_gather(workers):
        assert workers(4, gathers_in_worker_order) == [[0.0, 1.0, 2.0, 3.0]] * 4

A group that does not end in time is killed, and every worker's stack is in the failure.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

TIMEOUT_SECONDS = 60.0


class WorkerFailed(AssertionError):
    """A worker raised, died or hung; the message has every worker's last words."""


@pytest.fixture(scope="session")
def server() -> ForkServerContext:
    """Where workers are forked from: a process that has torch in memory and no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tests.kit",
            "torch._dynamo",
            "torch.testing",
            "disttrain.strategies.attach",
            "disttrain.worker",
            "disttrain.training.loop",
            "sklearn.datasets",
        ]
    )
    return context


@pytest.fixture
def workers(server: ForkServerContext, tmp_path: Path) -> Callable[..., list[Any]]:
    """``workers(n, function, *arguments, timeout=…)`` calls ``function(world, *arguments)`` in n processes; their results."""

    def run(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = TIMEOUT_SECONDS) -> list[Any]:
        return run_workers(server, Path(tempfile.mkdtemp(dir=tmp_path)), size, _in_world, function, arguments, timeout=timeout)

    return run


@pytest.fixture
def launched(server: ForkServerContext, tmp_path: Path) -> Callable[..., list[Any]]:
    """Like ``workers``, but ``function(*arguments)`` finds torchrun's environment variables instead of a world."""

    def run(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = TIMEOUT_SECONDS) -> list[Any]:
        return run_workers(server, Path(tempfile.mkdtemp(dir=tmp_path)), size, _call, function, arguments, timeout=timeout)

    return run


def run_workers(
    context: ForkServerContext, folder: Path, size: int, body: Callable[..., Any], *arguments: Any, timeout: float
) -> list[Any]:
    """Call ``body(*arguments)`` in ``size`` processes that torchrun could have started; their results in rank order."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        context.Process(target=_worker, args=(rank, size, store.port, folder, body, arguments), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    while any(p.is_alive() for p in processes) and time.monotonic() < deadline and not list(folder.glob("*.failed")):
        time.sleep(0.005)
    _end(processes, grace=0.0 if time.monotonic() >= deadline else 2.0)
    results = [folder / f"{rank}.result" for rank in range(size)]
    if not all(path.exists() for path in results):
        raise WorkerFailed(_last_words(folder, processes, timeout))
    return [pickle.loads(path.read_bytes()) for path in results]  # written by this very test run


def _end(processes: list[Any], grace: float) -> None:
    """Let peers of a failed worker fail too, then make those that hang print their stacks, and kill them."""
    deadline = time.monotonic() + grace
    while any(p.is_alive() for p in processes) and time.monotonic() < deadline:
        time.sleep(0.005)
    hung = [p for p in processes if p.is_alive()]
    for process in hung:
        os.kill(process.pid, faulthandler_signal())
    time.sleep(0.3 if hung else 0.0)
    for process in hung:
        process.kill()
    for process in processes:
        process.join()


def faulthandler_signal() -> int:
    """The signal on which a worker of the kit prints its stack."""
    import signal

    return signal.SIGUSR2


def _worker(rank: int, size: int, port: int, folder: Path, body: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    stacks = (folder / f"{rank}.stacks").open("w")
    faulthandler.register(faulthandler_signal(), stacks)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    try:
        result = body(*arguments)
        beside = folder / f"{rank}.partial"
        beside.write_bytes(pickle.dumps(result))
        beside.rename(folder / f"{rank}.result")
    except BaseException:
        beside = folder / f"{rank}.words"
        beside.write_text(traceback.format_exc())
        beside.rename(folder / f"{rank}.failed")
    os._exit(0)


def _in_world(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    from datetime import timedelta

    from disttrain.worlds import TorchWorld

    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    return function(TorchWorld(), *arguments)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


def _last_words(folder: Path, processes: list[Any], timeout: float) -> str:
    parts = []
    for rank, process in enumerate(processes):
        if (folder / f"{rank}.result").exists():
            continue
        failed, stacks = folder / f"{rank}.failed", (folder / f"{rank}.stacks")
        words = failed.read_text() if failed.exists() else stacks.read_text() if stacks.exists() else ""
        parts.append(f"--- worker {rank} (exit code {process.exitcode}, limit {timeout:g} s)\n{words}")
    return "\n".join(parts)
