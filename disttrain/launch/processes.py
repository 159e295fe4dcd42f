"""Worker processes of this host, started together and looked after one by one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


class Processes:
    """Processes by rank.

    Args:
        processes: just started, in the order of their ranks.
    """

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes = list(processes)

    def __len__(self) -> int:
        return len(self._processes)

    def replace(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Another one has the rank of one that has ended."""
        self._processes[rank] = process

    def exit_codes(self) -> dict[int, int]:
        """Of the workers that have ended; a signal's number, negative, if one ended them."""
        codes = {rank: process.poll() for rank, process in enumerate(self._processes)}
        return {rank: code for rank, code in codes.items() if code is not None}

    def signal(self, rank: int, number: int) -> None:
        """Send a signal; without effect on a worker that has ended."""
        self._processes[rank].send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Until all have ended, or so long; whether they have."""
        deadline = time.monotonic() + seconds
        while len(self.exit_codes()) < len(self):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def ask_to_stop(self, seconds: float) -> None:
        """By SIGTERM; whoever has not ended after so long is killed."""
        for process in self._processes:
            process.terminate()
        self.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """All that are left, frozen ones too."""
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()


def start_process(
    command: Sequence[str], variables: dict[str, object], errors: Path, output: Path | int | None
) -> subprocess.Popen[bytes]:
    """Start one, with more environment variables.

    Args:
        command: the program and its arguments.
        variables: to be added.
        errors: takes standard error.
        output: takes standard output; None: the terminal.
    """
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    with contextlib.ExitStack() as files:
        stdout = files.enter_context(output.open("wb")) if isinstance(output, Path) else output
        stderr = files.enter_context(errors.open("wb"))
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
