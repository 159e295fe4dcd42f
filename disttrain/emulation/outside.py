"""The process outside the namespaces: starts the one inside, passes signals on to it, and hands on its exit code.

``unshare`` makes the namespaces and waits; the process inside is its child. If this process is killed, the kernel kills
``unshare`` (parent-death signal), then the process inside (``--kill-child``), and with that, as PID 1, everything else there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
from typing import Any

from disttrain.emulation.plan import Plan
from disttrain.emulation.requirements import ISOLATED
from disttrain.launch.shutdown import FAILED, stop_with_parent

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def emulate(plan: Plan) -> int:
    """Run ``plan`` to its end; returns the exit code. A second SIGINT ends everything at once."""
    ctypes.CDLL(None)  # loaded before the fork, so that the child only calls it
    process = subprocess.Popen(
        [*ISOLATED, sys.executable, "-m", "disttrain.emulation.inside", plan.model_dump_json()],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C comes here only: whatever holds the network must not get it
        preexec_fn=functools.partial(stop_with_parent, signal.SIGKILL),
    )
    pass_on = functools.partial(_pass_on, process, [])
    for number in PASSED_ON:
        signal.signal(number, pass_on)
    code = process.wait()
    if code < 0:
        print("disttrain: the emulation was killed, and everything in it", file=sys.stderr)
    return FAILED if code < 0 else code


def _pass_on(process: subprocess.Popen[str], earlier: list[int], number: int, frame: Any) -> None:
    if number == signal.SIGINT and signal.SIGINT in earlier:
        process.kill()
        return
    earlier.append(number)
    assert process.stdin is not None
    # Unbuffered: a second signal may come in the middle of this.
    with contextlib.suppress(OSError):  # it has just ended
        os.write(process.stdin.fileno(), f"{signal.Signals(number).name}\n".encode())
