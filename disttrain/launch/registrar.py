"""The launcher's side of a run that outlives its workers: hears their beats, decides who is lost, tells everybody.

It serves the store in which workers meet, so the store lives as long as the launcher does; without it the run ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from disttrain.worlds.register import NOT_BEGUN, RECORD, Loss, Record, beat_key
from disttrain.worlds.store import TCPStore

TICK_SECONDS = 0.1
NOTICE_SECONDS = 1.0
"""How far beyond all progress a new topology begins: workers read the record several times in that."""


class Registrar:
    """Keeps the record of ``size`` workers.

    Args:
        size: how many.
        timeout: seconds; whoever gives no sign of life for so long is silent, and whoever makes no step while others do.

    Attributes:
        record: as everybody can read it.
        began: whether all workers have begun to train: before, none can be spared.
    """

    def __init__(self, size: int, timeout: float) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._keys, self._timeout = [beat_key(rank) for rank in range(size)], timeout
        self.record, self.began = Record((NOT_BEGUN,) * size), False
        self._beats, self._lived, self._stepped = [b""] * size, [math.inf] * size, [math.inf] * size
        self._started, self._next = 0.0, 0.0
        for key in self._keys:
            self._store.set(key, "")
        self._publish()

    @property
    def port(self) -> int:
        """Where the store listens, on this host."""
        return int(self._store.port)

    def tick(self) -> None:
        """Hear the beats and tell everybody, if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + TICK_SECONDS
        beats = self._store.multi_get(self._keys)
        steps = tuple(int(beat.split()[0]) if beat else NOT_BEGUN for beat in beats)
        self._lived = _since(self._lived, self._beats, beats, now)
        self._stepped = _since(self._stepped, self.record.steps, steps, now)
        self._beats = beats
        if not self.began and min(steps) > NOT_BEGUN:
            self.began, self._started = True, now
        self.record = Record(steps, self.record.lost)
        self._publish()

    def silent(self) -> list[int]:
        """Who has been still for too long."""
        if not self.began:
            return []
        latest, furthest = time.monotonic() - self._timeout, max(self.record.steps)
        return [
            rank
            for rank in self.record.survivors
            if self._lived[rank] < latest or (self._stepped[rank] < latest and self.record.steps[rank] < furthest)
        ]

    def lose(self, rank: int, reason: str) -> Loss:
        """Strike a worker off, and tell everybody at once."""
        steps, seconds = self.record.steps, time.monotonic() - self._started
        furthest = max(steps)
        from_step = furthest + 2 + math.ceil(furthest * NOTICE_SECONDS / max(seconds, NOTICE_SECONDS))
        loss = Loss(reason, steps[rank], round(seconds, 3), from_step)
        self.record = Record(steps, {**self.record.lost, rank: loss})
        self._publish()
        return loss

    def _publish(self) -> None:
        self._store.set(RECORD, self.record.dump())


def _since(times: list[float], before: Sequence[object], now_there: Sequence[object], now: float) -> list[float]:
    """When each of several things has changed last."""
    return [now if old != new else time_ for time_, old, new in zip(times, before, now_there, strict=True)]
