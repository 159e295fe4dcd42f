"""Makes a script's events happen."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from disttrain.emulation.bandwidth import parse_link, parse_links
from disttrain.emulation.events import Event, as_record, when
from disttrain.emulation.network import Network
from disttrain.emulation.workers import Workers
from disttrain.launch.ending import Ending
from disttrain.launch.shutdown import FAILED

SIGNALS = {"freeze": signal.SIGSTOP, "thaw": signal.SIGCONT, "kill": signal.SIGKILL, "restart": signal.SIGKILL}


class Timeline:
    """The events of a run; its clock starts when worker 0 writes the run folder's ``config.yaml``, for training begins then.

    Args:
        events: in the order of their times.
        network: what they happen to, beside the workers.
        folder: the run folder, whose ``events.jsonl`` gets a line for each event that happened.
    """

    def __init__(self, events: Sequence[Event], network: Network, folder: Path) -> None:
        self.pending, self.happened = list(events), 0
        self._network, self._folder = network, folder
        self._config, self._log = folder / "config.yaml", folder / "events.jsonl"
        self._before = self._config_written()
        self._started: float | None = None

    def advance(self, workers: Workers) -> Ending | None:
        """Let everything happen that is due; an ending if the workers are to be started again."""
        if self._started is None:
            if self._config_written() == self._before:
                return None
            self._started = time.monotonic()
        while self.pending and time.monotonic() - self._started >= self.pending[0].at:
            event = self.pending.pop(0)
            self._let_happen(event, workers)
            self._record(event, time.monotonic() - self._started)
            if event.restart is not None:
                return Ending(FAILED, f"worker {event.restart} was killed by --events, to be restarted", final=False, wanted=True)
        return None

    def _let_happen(self, event: Event, workers: Workers) -> None:
        network, action = self._network, event.action
        if event.bandwidth is not None:
            self._change_bandwidth(event.bandwidth, event.worker, len(workers))
        elif action == "cut":
            network.cut(getattr(event, action))
        elif action == "restore":
            network.restore(getattr(event, action))
        else:
            workers.signal(getattr(event, action), SIGNALS[action])

    def _change_bandwidth(self, spec: str, worker: int | None, workers: int) -> None:
        if worker is not None:
            self._network.shape(worker, parse_link(spec))
            return
        for each, link in enumerate(parse_links(spec, workers)):
            self._network.shape(each, link)

    def _record(self, event: Event, seconds: float) -> None:
        self.happened += 1
        print(f"event     {when(event)}: {event}", flush=True)
        with self._log.open("a") as file:
            file.write(json.dumps(as_record(event, seconds)) + "\n")

    def _config_written(self) -> int | None:
        return self._config.stat().st_mtime_ns if self._config.exists() else None
