"""The workers of one start: the real worker program, each in its namespace."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from disttrain.emulation.network import Network
from disttrain.launch.worker_logs import log_stems


class Workers:
    """Processes by rank, started together.

    Args:
        network: has a namespace for each.
        size: how many.
        command: a Python module that they run, and its arguments; it finds torchrun's environment variables.
        logs: standard error goes to ``rankN.log`` there, standard output to ``rankN.out``, worker 0's to ``output``.
        port: where worker 0 listens for the others.
        output: of worker 0, a file descriptor; None: the terminal.
    """

    def __init__(
        self, network: Network, size: int, command: Sequence[str], logs: Path, port: int, output: int | None = None
    ) -> None:
        world = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": network.address(0), "MASTER_PORT": port}
        python = [sys.executable, "-u", "-m", *command]
        self._processes = []
        for rank, stem in log_stems(logs, range(size)).items():
            variables = world | {"RANK": rank, "LOCAL_RANK": rank}
            own_output = Path(f"{stem}.out") if rank else output
            self._processes.append(_start(network.inside(rank, python), variables, Path(f"{stem}.log"), own_output))

    def __len__(self) -> int:
        return len(self._processes)

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


def _start(command: list[str], variables: dict[str, object], errors: Path, output: Path | int | None) -> subprocess.Popen[bytes]:
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    with contextlib.ExitStack() as files:
        stdout = files.enter_context(output.open("wb")) if isinstance(output, Path) else output
        stderr = files.enter_context(errors.open("wb"))
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
