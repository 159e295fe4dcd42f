"""The launcher's side of a run that outlives its workers: hears their beats, says who is lost and who is back, tells everybody.

It serves the store in which workers meet, so the store lives as long as the launcher does; without it the run ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from disttrain.worlds.register import CLOSED, DOOR, LETTING_IN, NOT_BEGUN, OPEN, RECORD, Loss, Record, beat_key, ready_key
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
        self._expected: set[int] = set()
        for key in self._keys:
            self._store.set(key, "")
        self._store.set(DOOR, OPEN)
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
        self.record = replace(self.record, steps=steps)
        for rank in sorted(self._expected):
            self._help_back(rank)
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
        seconds = time.monotonic() - self._started
        loss = Loss(reason, self.record.steps[rank], round(seconds, 3), self._step_to_come())
        self._note(rank, (*self.record.losses.get(rank, ()), loss))
        self._publish()
        return loss

    def expect(self, rank: int) -> int:
        """A lost worker is started again, and will ask for somebody's state; returns the number of its life."""
        self._expected.add(rank)
        self._store.set(self._keys[rank], "")
        life = self.record.lives.get(rank, 0) + 1
        self.record = replace(self.record, lives={**self.record.lives, rank: life})
        self._forget_giver(rank)
        self._publish()
        return life

    def give_up(self, rank: int) -> None:
        """It has ended before it was back."""
        self._expected.discard(rank)
        self._forget_giver(rank)

    @property
    def is_over(self) -> bool:
        """Whether the first worker has come to the run's end, and nobody is let in any more."""
        return bool(self._store.get(DOOR) == CLOSED.encode())

    def _help_back(self, rank: int) -> None:
        """Name who gives its state, once the worker is ready to take it; let it in, once it has begun."""
        if rank not in self.record.givers:
            if self.record.survivors and self._store.check([ready_key(rank, self.record.lives[rank])]):
                giver = self.record.seniority[-1]  # not the one that writes for all, if there is another
                self.record = replace(self.record, givers={**self.record.givers, rank: giver})
        elif self.record.steps[rank] > NOT_BEGUN and self._store.compare_set(DOOR, OPEN, LETTING_IN) == LETTING_IN.encode():
            *earlier, last = self.record.losses[rank]
            self._expected.discard(rank)
            self._lived[rank] = self._stepped[rank] = time.monotonic()
            self._note(rank, (*earlier, replace(last, back_from=self._step_to_come())))
            self._forget_giver(rank)
            self._publish()
            self._store.set(DOOR, OPEN)

    def _note(self, rank: int, losses: tuple[Loss, ...]) -> None:
        self.record = replace(self.record, losses={**self.record.losses, rank: losses})

    def _forget_giver(self, rank: int) -> None:
        self.record = replace(self.record, givers={taker: own for taker, own in self.record.givers.items() if taker != rank})

    def _step_to_come(self) -> int:
        """A step far enough beyond everybody's progress that all know of it by then."""
        furthest, seconds = max(self.record.steps), time.monotonic() - self._started
        return furthest + 2 + math.ceil(furthest * NOTICE_SECONDS / max(seconds, NOTICE_SECONDS))

    def _publish(self) -> None:
        self._store.set(RECORD, self.record.dump())


def _since(times: list[float], before: Sequence[object], now_there: Sequence[object], now: float) -> list[float]:
    """When each of several things has changed last."""
    return [now if old != new else time_ for time_, old, new in zip(times, before, now_there, strict=True)]
