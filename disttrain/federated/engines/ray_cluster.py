"""Joining a Ray cluster, or starting a small Ray on this machine; never without a deadline.

Ray itself waits for more than a minute for an address where nobody answers, and then ends the process. So an address is tried
first: by a plain connection, and then by a process that can be killed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from disttrain.component import UserError
from disttrain.federated.engines import ray_watch

CONNECT_SECONDS, CLEANUP_SECONDS = 5.0, 60.0
QUIET = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
AUTHENTICATION = "RAY_AUTH_MODE"
"""Whether a cluster wants a token. Ray finds that out by itself for ``auto`` only, not for an explicit address."""
HANDLED = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Cluster:
    """Where actors can be started.

    Args:
        cpus: that Ray has to give.
        place: where that is, in words.
    """

    cpus: int
    place: str


def missing() -> str | None:
    """What to do about Ray if it is not there."""
    if importlib.util.find_spec("ray") is None:
        return "federated.engine=ray needs Ray, which is not installed: pip install 'disttrain[ray]'"
    return None


def is_joined() -> bool:
    """Whether this process has joined a cluster already; without importing Ray for that."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def cpus_here() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def joined(address: str | None, timeout_seconds: float) -> Iterator[Cluster]:
    """A Ray cluster for as long as this lasts; one that this process has joined before is used, and not left.

    Args:
        address: ``host:port`` or ``auto``; None: a Ray of its own on this machine, which ends with it.
        timeout_seconds: for everything that must answer.

    Raises:
        UserError: if Ray is not installed, or the address does not answer.
    """
    if fault := missing():
        raise UserError(fault)
    import ray

    if is_joined():
        yield Cluster(_cpus(ray), "the Ray that this process has joined")
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is not None:
        _try_out(address, timeout_seconds)
        with _signals_kept(), _quiet():
            ray.init(address=address, **QUIET)
        try:
            yield Cluster(_cpus(ray), f"the Ray cluster at {address}")
        finally:
            ray.shutdown()
        return
    with local(cpus_here()) as cluster:
        yield cluster


@contextlib.contextmanager
def local(cpus: int) -> Iterator[Cluster]:
    """A Ray of this process's own. Its processes end with this one, even if it is killed.

    Args:
        cpus: for it to give; more than there are is possible.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    folder = tempfile.mkdtemp(prefix="disttrain-ray-", dir="/tmp")  # short: sockets in it may have 107 characters in all
    watch = [sys.executable, ray_watch.__file__, folder]
    watcher = subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True)  # not to be reached by Ctrl-C
    try:
        with _signals_kept(), _quiet(), _marked(folder):
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                _temp_dir=folder,
                _system_config={"worker_niceness": 0},  # Ray's workers yield to everything else by default
                **QUIET,
            )
        yield Cluster(cpus, f"a Ray of its own with {cpus} CPUs")
    finally:
        ray.shutdown()
        watcher.communicate(timeout=CLEANUP_SECONDS)


def _cpus(ray: Any) -> int:
    return int(ray.cluster_resources().get("CPU", 0))


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts handlers of its own in the place of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def _marked(folder: str) -> Iterator[None]:
    """Processes that are started meanwhile, and theirs, can be told from others."""
    os.environ[ray_watch.VARIABLE] = folder
    yield
    del os.environ[ray_watch.VARIABLE]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray warns that its defaults are its defaults, before it looks at what level of warnings is wanted."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _try_out(address: str, timeout_seconds: float) -> None:
    """Whether a Ray cluster answers there.

    Raises:
        UserError: if not.
    """
    problem = f"federated.ray.address={address}: "
    if address != "auto":
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdecimal() or "/" in host:
            raise UserError(problem + "must be host:port of the cluster's head, such as 10.0.0.1:6379, or auto")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise UserError(problem + f"nobody answers there ({error}): is it the address of a cluster's head?") from None
    trial = f"import ray; ray.init(address={address!r}, logging_level='ERROR', log_to_driver=False)"
    try:
        done = subprocess.run([sys.executable, "-c", trial], capture_output=True, text=True, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise UserError(
            problem
            + f"somebody listens there, but no Ray cluster answered within {timeout_seconds:g} s (federated.ray.start_timeout)"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        hint = "" if AUTHENTICATION in os.environ else f"; if that cluster wants a token, set {AUTHENTICATION}=token"
        raise UserError(problem + f"Ray could not join: {reason}{hint}")
