"""The workers of one start: the real worker program, each in its namespace."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from disttrain.emulation.network import Network
from disttrain.launch.processes import Processes, start_process
from disttrain.launch.worker_logs import log_stems


class Workers(Processes):
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
        processes = []
        for rank, stem in log_stems(logs, range(size)).items():
            variables = world | {"RANK": rank, "LOCAL_RANK": rank}
            own_output = Path(f"{stem}.out") if rank else output
            processes.append(start_process(network.inside(rank, python), variables, Path(f"{stem}.log"), own_output))
        super().__init__(processes)
