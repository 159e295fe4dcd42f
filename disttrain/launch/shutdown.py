"""How a worker ends: the reason once, and never a hang or an abort.

Processes with a gloo group abort now and then at interpreter exit, even after the group is destroyed; leaving by ``os._exit``
does not. On the error path the group is not destroyed, because that waits for peers that may sit in a collective.

Torch, which takes seconds to import, is imported where it is needed: whoever only needs the exit codes need not wait.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from disttrain.component import UserError
from disttrain.launch.rank_info import RankInfo

DONE, FAILED, USERS_MISTAKE, STOPPED = 0, 1, 2, 143
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "socket has timed out",  # it is there, but does not answer while all meet
    "remote process exited",
)
WRAPPING = re.compile(r"(Got the following error when running the callback: \w+: )*(\[[^]]*\.cc:\d+\] )?")
"""What torch and gloo put before the reason, when an error passes DDP's futures."""


class StopRequest:
    """Whether somebody asked this process to stop: SIGTERM, SIGINT, SIGHUP, or SIGUSR1 (a batch system's early warning).

    The handlers only set a flag; the loop acts on it at a step where all workers can. A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    def listen(self) -> None:
        """Install the handlers; without effect outside the main thread, where Python allows none."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, self._handle)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _handle(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.signal == "SIGINT":
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


def stop_with_parent(number: int = signal.SIGTERM) -> None:
    """Get a signal when the launcher is gone, so that a killed launcher leaves no orphans. Linux only."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, number)


def run_worker(
    main: Callable[[], int],
    info: RankInfo,
    folder: Callable[[], Path | None],
    end: Callable[[int, str], NoReturn] | None = None,
) -> NoReturn:
    """Call ``main`` and leave the process by its exit code; a failure is written to ``failure.rankN.json`` and printed.

    Args:
        main: the worker's whole life; returns an exit code.
        info: this process.
        folder: the run folder, or None as long as there is none.
        end: how to leave, given the exit code and, after a failure, its kind (see :func:`describe`); None: :func:`leave`.
    """
    end = end or (lambda code, kind: leave(code))
    try:
        code = main()
    except BaseException as error:
        code = USERS_MISTAKE if isinstance(error, UserError) else FAILED
        report_failure(error, info, folder())
        end(code, describe(error)[0])
    if not info.survives_peers:  # else peers may be lost or late, and destroying the group would wait for them
        leave_world()
    end(code, "")


def leave_world() -> None:
    """Give up the process group, after what hangs on it: a DDP that outlives its group aborts the process at exit."""
    import torch.distributed as dist

    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process now, past all destructors."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def report_failure(error: BaseException, info: RankInfo, folder: Path | None) -> None:
    """Print the reason, first and once, and leave it in the run folder for the launcher."""
    kind, reason = describe(error)
    if kind == "mistake":
        text = f"disttrain: {reason}\n" if info.local_rank == 0 else ""
    else:
        text = f"disttrain: rank {info.rank} on {socket.gethostname()} failed: {reason}\n"
        text += "" if kind == "peer" else "".join(traceback.format_exception(error))
    print(text, end="", file=sys.stderr, flush=True)
    if folder is not None and folder.is_dir():
        failure = {"rank": info.rank, "host": socket.gethostname(), "kind": kind, "reason": reason}
        path = folder / f"failure.rank{info.rank}.json"
        try:
            path.write_text(json.dumps(failure | {"traceback": traceback.format_exception(error)}, indent=1))
        except OSError as unwritable:
            print(f"disttrain: {path} could not be written: {unwritable}", file=sys.stderr)


def leave_on_errors() -> None:
    """In a user's own script: an uncaught mistake is one line and exit code 2, anything else a traceback and 1, at once."""
    default = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, UserError):
            print(f"disttrain: {error}", file=sys.stderr)
            leave(USERS_MISTAKE)
        default(kind, error, trace)
        import torch.distributed as dist

        if dist.is_initialized():
            leave(FAILED)  # the group is not destroyed, which waits for peers

    sys.excepthook = hook


def describe(error: BaseException) -> tuple[str, str]:
    """The kind of a failure (the user's ``mistake``, a lost ``peer``, this worker's own ``error``) and one line of reason."""
    if isinstance(error, UserError):
        return "mistake", str(error)
    first_line = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_PEER):
        return "peer", f"lost the connection to another worker ({WRAPPING.sub('', first_line)})"
    if "find_unused_parameters" in str(error):
        first_line = "some parameters got no gradient in a step; if that is meant, set strategy.find_unused_parameters=true"
    return "error", f"{type(error).__name__}: {first_line}"
