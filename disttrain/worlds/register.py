"""Who takes part in a run that outlives its workers: what workers say of themselves, and what the launcher says of all.

Everything is in the store that the launcher's own process serves, so no worker's end can take it away:

    beat/RANK     the steps that a worker has made; written by it five times a second
    record        a :class:`Record`; written by the launcher, read by every worker as often
    ready/…       a worker that was started again waits for somebody's state
    door          closed by the first worker that comes to the run's end: from then on nobody is let in

The launcher alone decides who is lost and who comes back. It sees its children end, and it ends whoever has been silent for too
long, so that nobody who counts as lost goes on. A lost rank that is started again is another *life* of it, the first is 0.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from disttrain.worlds.store import TCPStore

RECORD, DOOR = "record", "door"
OPEN, LETTING_IN, CLOSED = "open", "letting in", "closed"
BEAT_SECONDS = 0.2
NOT_BEGUN = -1


def beat_key(rank: int) -> str:
    """Where a worker's beats are."""
    return f"beat/{rank}"


def ready_key(rank: int, life: int) -> str:
    """Where a worker says that it can take somebody's state."""
    return f"ready/{rank}.{life}"


@dataclass(frozen=True)
class Loss:
    """The end of a worker's life."""

    reason: str
    step: int
    """The last one that it has told of: it may have made a few more."""
    seconds: float
    """Since training began."""
    from_step: int
    """After this step the others mix among themselves, by a topology of their own; chosen beyond everybody's progress."""
    back_from: int | None = None
    """After this step the rank takes part again, in its next life; None: it is not back."""

    def away(self, step: int) -> bool:
        """Whether the worker does not take part after ``step``."""
        return step >= self.from_step and (self.back_from is None or step < self.back_from)


@dataclass(frozen=True)
class Record:
    """What the launcher knows."""

    steps: tuple[int, ...]
    """Made by each worker, as last heard."""
    losses: Mapping[int, tuple[Loss, ...]] = field(default_factory=dict)
    """By rank, the latest last."""
    lives: Mapping[int, int] = field(default_factory=dict)
    """How often a rank was started again, if it was."""
    givers: Mapping[int, int] = field(default_factory=dict)
    """Whose state is given to a worker that was started again, by the latter's rank."""

    @property
    def lost(self) -> dict[int, Loss]:
        """Who is lost by now, and not back: by rank."""
        return {rank: losses[-1] for rank, losses in self.losses.items() if losses[-1].back_from is None}

    def living(self, step: int) -> Tensor:
        """Who takes part after ``step``: bool ``[size]``."""
        return torch.tensor([not any(loss.away(step) for loss in self.losses.get(rank, ())) for rank in range(len(self.steps))])

    @property
    def survivors(self) -> list[int]:
        """Who is not lost by now."""
        return [rank for rank in range(len(self.steps)) if rank not in self.lost]

    @property
    def seniority(self) -> list[int]:
        """The survivors, those that have been there all the time first: who writes for all should not change without need."""

        def came(rank: int) -> int:
            return self.losses[rank][-1].back_from or 0 if rank in self.losses else -1

        return sorted(self.survivors, key=lambda rank: (came(rank), rank))

    def dump(self) -> str:
        """As JSON."""
        losses = {rank: list(map(asdict, losses)) for rank, losses in self.losses.items()}
        return json.dumps({"steps": self.steps, "losses": losses, "lives": self.lives, "givers": self.givers})

    @classmethod
    def load(cls, text: bytes) -> Self:
        """From JSON."""
        facts = json.loads(text)
        losses = {int(rank): tuple(Loss(**loss) for loss in losses) for rank, losses in facts["losses"].items()}
        lives, givers = ({int(rank): value for rank, value in facts[name].items()} for name in ("lives", "givers"))
        return cls(tuple(facts["steps"]), losses, lives, givers)


class Register:
    """A worker's view of the record, and its beats; a thread keeps both up to date.

    Args:
        store: a connection of its own.
        rank: this worker.
        launcher_lost: called if the store cannot be reached any more.

    Attributes:
        step: steps made; :data:`NOT_BEGUN` before training begins.
        record: as last read.
    """

    def __init__(self, store: TCPStore, rank: int, launcher_lost: Callable[[], None]) -> None:
        self._store, self._rank, self._launcher_lost = store, rank, launcher_lost
        self.step, self.record, self._lock = NOT_BEGUN, Record.load(store.get(RECORD)), threading.Lock()
        threading.Thread(target=self._keep, name="register", daemon=True).start()

    def close_door(self) -> None:
        """Nobody is let in from now on; the record has everybody that was."""
        while self._store.compare_set(DOOR, OPEN, CLOSED) == LETTING_IN.encode():
            time.sleep(0.005)
        self._read()

    def _read(self) -> None:
        with self._lock:  # or an older record could come after a newer one
            self.record = Record.load(self._store.get(RECORD))

    def _keep(self) -> None:
        count = 0
        while True:
            try:
                self._store.set(beat_key(self._rank), f"{self.step} {count}")  # the count tells a frozen worker from a slow one
                self._read()
            except RuntimeError:
                self._launcher_lost()
                return
            count += 1
            time.sleep(BEAT_SECONDS)
