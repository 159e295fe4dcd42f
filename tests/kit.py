"""Run a function as N workers over gloo: real processes, forked from a server that has imported torch once.

    def gathers_in_worker_order(world):
        return world.gather(world.ids[None].float()).flatten().tolist()

    def test_gather(workers):
        assert workers(4, gathers_in_worker_order) == [[0.0, 1.0, 2.0, 3.0]] * 4

A group that is not done in time is killed whole, with every process that its workers started. The failure says of each worker
whether it finished, raised, died or hung, with its traceback or the Python stacks of all its threads. ``tests/faults.py`` makes
workers die, hang, dawdle or send rubbish at a chosen step.

Tests that use a fixture of this file carry the marker ``multiprocess``. ``tests/repeat.sh`` runs those 20 times and counts the
rounds that failed.

The workers meet through a TCPStore. A port that is found free first and bound later can be lost to another process in between,
which is why torch's own tests meet in a file; here nothing comes in between: the test process itself binds port 0, the operating
system picks the number, and the listening socket stays open until the group has ended. Unlike a FileStore it also serves the code
under test that reads MASTER_ADDR and MASTER_PORT, as torchrun's store does (``launched``), and outlives any worker.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.faults import PRINT_OWN_STACK, PRINT_STACKS, check_all_have_struck

TIMEOUT_SECONDS = 180.0  # for what takes seconds on a quiet machine
GRACE_SECONDS = 3.0  # after a worker's failure, for its peers to notice and to say what they saw
STACKS_SECONDS = 1.0  # at most, for hung workers to print their stacks


class WorkerFailed(AssertionError):
    """A worker raised, died or hung; the message has what became of every worker."""


@pytest.fixture(scope="session")
def server() -> ForkServerContext:
    """Where workers are forked from: a process that has torch in memory and no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tests.kit",
            "torch._dynamo",
            "torch.distributed.tensor",
            "torch.testing",
            "disttrain.strategies.attach_fsdp",
            "disttrain.strategies.attach_zero",
            "disttrain.worker",
            "disttrain.training.loop",
            "sklearn.datasets",
            "matplotlib.figure",
            "matplotlib.backends.backend_agg",
        ]
    )
    first = context.Process(target=int)  # the imports' seconds are nobody's time limit
    first.start()
    first.join()
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
    """Call ``body(*arguments)`` in ``size`` processes that torchrun could have started; their results in rank order.

    Raises:
        WorkerFailed: if a worker has no result after ``timeout`` seconds, or soon after another one failed.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes: list[ForkServerProcess] = []
    try:
        for rank in range(size):
            (folder / f"{rank}.stacks").touch()
            process = context.Process(target=_worker, args=(rank, size, store.port, folder, body, arguments), daemon=True)
            process.start()
            processes.append(process)
        start = time.monotonic()
        _wait_for_end(processes, folder, start + timeout)
        hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
        seconds = time.monotonic() - start
        _print_stacks(processes, folder, hung)
    finally:  # also on Ctrl-C, which does not reach the workers in sessions of their own
        _kill(processes)
    results = [folder / f"{rank}.result" for rank in range(size)]
    if hung or not all(path.exists() for path in results):
        accounts = [_account(rank, process, folder, rank in hung) for rank, process in enumerate(processes)]
        raise WorkerFailed("\n".join([f"after {seconds:.1f} s (limit {timeout:g} s):", *accounts]))
    return [pickle.loads(path.read_bytes()) for path in results]  # written by this very test run


def _wait_for_end(processes: list[ForkServerProcess], folder: Path, deadline: float) -> None:
    """Return when all have ended, at the deadline, or when one has failed and its peers have had time to fail too."""
    failed = False
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if not failed and (any(process.exitcode for process in processes) or list(folder.glob("*.failed"))):
            failed, deadline = True, min(deadline, time.monotonic() + GRACE_SECONDS)
        time.sleep(0.005)


def _print_stacks(processes: list[ForkServerProcess], folder: Path, hung: list[int]) -> None:
    """Let hung workers write the stacks of all their threads, and wait until the files have stopped growing."""
    for rank in hung:
        with suppress(ProcessLookupError):
            os.kill(processes[rank].pid, PRINT_STACKS)
    sizes, deadline = [0] * len(hung), time.monotonic() + STACKS_SECONDS
    while hung and time.monotonic() < deadline:
        time.sleep(0.1)
        before, sizes = sizes, [(folder / f"{rank}.stacks").stat().st_size for rank in hung]
        if sizes == before and all(sizes):
            return


def _kill(processes: list[ForkServerProcess]) -> None:
    """End what is left: workers that hang, and what any worker has started and not ended."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # it may not have come to lead a group yet
        process.join()


def _worker(rank: int, size: int, port: int, folder: Path, body: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()  # its children are killed with it
    stacks = (folder / f"{rank}.stacks").open("w")
    faulthandler.register(PRINT_STACKS, stacks, all_threads=True)
    faulthandler.register(PRINT_OWN_STACK, stacks, all_threads=False)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    try:
        result = body(*arguments)
        check_all_have_struck()
        _write(folder / f"{rank}.result", pickle.dumps(result))
    except BaseException:
        _write(folder / f"{rank}.failed", traceback.format_exc().encode())
    os._exit(0)


def _write(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".partial")
    beside.write_bytes(content)
    beside.rename(path)


def _in_world(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    from datetime import timedelta

    from disttrain.worlds import TorchWorld

    timeout = timedelta(seconds=30)
    dist.init_process_group("gloo", timeout=timeout)
    dist.barrier()  # a worker that ends at once must not leave the others in the middle of connecting
    return function(TorchWorld(timeout=timeout), *arguments)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


def _account(rank: int, process: ForkServerProcess, folder: Path, hung: bool) -> str:
    """What became of one worker, as the failure tells it."""
    if hung:
        stacks = (folder / f"{rank}.stacks").read_text() or f"none: it did not answer within {STACKS_SECONDS:g} s\n"
        return f"--- worker {rank} hung and was killed; its stacks:\n{stacks}"
    if (folder / f"{rank}.result").exists():
        return f"--- worker {rank} finished"
    if (folder / f"{rank}.failed").exists():
        return f"--- worker {rank} raised:\n{(folder / f'{rank}.failed').read_text()}"
    code = process.exitcode or 0
    return f"--- worker {rank} " + (f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}")
