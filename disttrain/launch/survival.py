"""``disttrain train --on-failure continue``: one host's workers, each looked after by itself, so that some can be lost.

Torch's elastic agent ends all workers when one ends. This launcher says who was lost and why, and lets the others go on; as often
as ``--max-restarts`` says it starts a lost one again, which takes another's state and joins them.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import Popen

from disttrain.launch.ending import Ending, ending_by_signal, ending_of, forget_reports, reason_of, say_ending
from disttrain.launch.processes import Processes, start_process
from disttrain.launch.registrar import Registrar
from disttrain.launch.shutdown import DONE, STOPPED, USERS_MISTAKE, StopRequest
from disttrain.launch.worker_logs import log_stems

GRACE_SECONDS = 5.0
"""Before training begins, for the others to notice that one has failed."""
STOP_SECONDS = 30.0
"""For all to save and stop."""
POLL_SECONDS = 0.02
Start = Callable[[int, int], "Popen[bytes]"]
"""Starts a rank's process; the second argument is the number of its life."""


def train_on(command: Sequence[str], folder: Path, workers: int, timeout: float, max_restarts: int = 0) -> int:
    """Run ``workers`` processes until those that are left have ended; returns the exit code.

    Args:
        command: a Python module that they run, and its arguments; it finds torchrun's environment variables.
        folder: the run folder, which exists.
        workers: on this host.
        timeout: seconds of ``launch.timeout``: who is silent for longer is ended, and lost.
        max_restarts: how often a lost worker is started again, all of them together.
    """
    stop, started = StopRequest(), time.time()
    stop.listen()
    forget_reports(folder)
    registrar = Registrar(workers, timeout)
    start = starter(command, folder / "logs", workers, registrar.port)
    processes = Processes([start(rank, 0) for rank in range(workers)])
    try:
        ending = Supervisor(processes, registrar, folder, start, max_restarts).run(stop, started)
    finally:
        processes.kill()
    return say_ending(ending, folder)


def starter(command: Sequence[str], logs: Path, workers: int, port: int) -> Start:
    """What starts a rank: standard error goes to ``rankN.log``, standard output to ``rankN.out``, worker 0's to the terminal."""
    world = {
        "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": "True", "DISTTRAIN_ON_FAILURE": "continue",
    }  # fmt: skip
    logs.mkdir(parents=True, exist_ok=True)
    python, stems = [sys.executable, "-u", "-m", *command], log_stems(logs, range(workers))

    def start(rank: int, life: int) -> Popen[bytes]:
        stem = log_stems(logs, [rank])[rank] if life else stems[rank]
        own: dict[str, object] = {"RANK": rank, "LOCAL_RANK": rank, "DISTTRAIN_LIFE": life}
        return start_process(python, world | own, Path(f"{stem}.log"), Path(f"{stem}.out") if rank else None)

    return start


class Supervisor:
    """Watches workers until all have ended.

    Args:
        processes: just started.
        registrar: is told of losses.
        folder: where failing workers leave their reports.
        start: starts one again.
        max_restarts: how often that is done.
    """

    def __init__(
        self, processes: Processes, registrar: Registrar, folder: Path, start: Start | None = None, max_restarts: int = 0
    ) -> None:
        self._processes, self._registrar, self._folder, self._start = processes, registrar, folder, start
        self._restarts_left, self._silenced, self._given_up = max_restarts, set[int](), set[int]()

    def run(self, stop: StopRequest, started: float) -> Ending:
        """How the run ended; ``started`` is when it was, by ``time.time()``."""
        while True:
            codes = self._processes.exit_codes()
            needed = [code for rank, code in codes.items() if rank not in self._registrar.record.lost]
            if USERS_MISTAKE in needed or (any(needed) and not self._registrar.began):
                return self._end_all()
            if stop:
                forget_reports(self._folder)  # of workers lost before: what counts now is whether the others can save
                self._processes.ask_to_stop(STOP_SECONDS)
                return ending_by_signal(str(stop.signal), self._folder, started)
            self._note_losses(codes)
            if set(self._registrar.record.survivors) <= codes.keys():
                self._processes.kill()  # whoever was not back in time
                return self._ending(codes)
            self._registrar.tick()
            self._end_the_silent()
            time.sleep(POLL_SECONDS)

    def _end_all(self) -> Ending:
        """One cannot be spared: whoever does not follow is killed."""
        first = self._processes.exit_codes()
        self._processes.wait(GRACE_SECONDS)
        codes = first | self._processes.exit_codes()
        self._processes.kill()
        codes |= self._processes.exit_codes()  # in the order of ending
        return ending_of({rank: code for rank, code in codes.items() if code}, self._folder)

    def _note_losses(self, codes: dict[int, int]) -> None:
        """Say in a line who was lost, and why."""
        for rank, code in codes.items():
            if rank in self._given_up or (rank not in self._registrar.record.lost and code in (DONE, STOPPED)):
                continue
            silent = "it did not answer within launch.timeout"
            reason = silent if rank in self._silenced else reason_of(rank, code, self._folder)
            if rank in self._registrar.record.lost:
                self._registrar.give_up(rank)
                what = f"rank {rank} has ended again before it was back: {reason}"
            else:
                loss = self._registrar.lose(rank, reason)
                what = f"rank {rank} is lost, about step {loss.step}: {reason}"
            print(f"disttrain: {what}; {self._go_on_after(rank)}", file=sys.stderr, flush=True)

    def _go_on_after(self, rank: int) -> str:
        """Start a lost worker again, if that is wanted; says what happens."""
        left = len(self._registrar.record.survivors)
        others = f"{left} of {len(self._processes)} workers go on" if left else "no worker is left"
        if not (self._start and self._restarts_left and left) or self._registrar.is_over:
            self._given_up.add(rank)
            return others
        self._restarts_left -= 1
        self._silenced.discard(rank)
        forget_reports(self._folder, rank)
        self._processes.replace(rank, self._start(rank, self._registrar.expect(rank)))
        return f"{others}, and it is started again ({self._restarts_left} restarts left)"

    def _end_the_silent(self) -> None:
        for rank in self._registrar.silent():
            self._silenced.add(rank)
            self._processes.signal(rank, signal.SIGKILL)

    def _ending(self, codes: dict[int, int]) -> Ending:
        """All that were not lost have ended: as they did."""
        if DONE in codes.values():
            return Ending(DONE)
        return Ending(STOPPED) if STOPPED in codes.values() else ending_of(codes, self._folder)
