"""Who takes part in a run that outlives its workers: what workers say of themselves, and what the launcher says of all.

Everything is in the store that the launcher's own process serves, so no worker's end can take it away:

    beat/RANK     the steps that a worker has made; written by it five times a second
    record        a :class:`Record`; written by the launcher, read by every worker as often

The launcher alone decides who is lost. It sees its children end, and it ends whoever has been silent for too long, so that nobody
who counts as lost can come back.
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

RECORD = "record"
BEAT_SECONDS = 0.2
NOT_BEGUN = -1


def beat_key(rank: int) -> str:
    """Where a worker's beats are."""
    return f"beat/{rank}"


@dataclass(frozen=True)
class Loss:
    """A worker that is no more."""

    reason: str
    step: int
    """The last one that it has told of: it may have made a few more."""
    seconds: float
    """Since training began."""
    from_step: int
    """After this step the others mix among themselves, by a topology of their own; chosen beyond everybody's progress."""


@dataclass(frozen=True)
class Record:
    """What the launcher knows."""

    steps: tuple[int, ...]
    """Made by each worker, as last heard."""
    lost: Mapping[int, Loss] = field(default_factory=dict)
    """By rank."""

    def living(self, step: int) -> Tensor:
        """Who takes part after ``step``: bool ``[size]``."""
        return torch.tensor([rank not in self.lost or step < self.lost[rank].from_step for rank in range(len(self.steps))])

    @property
    def survivors(self) -> list[int]:
        """Who is not lost by now."""
        return [rank for rank in range(len(self.steps)) if rank not in self.lost]

    def dump(self) -> str:
        """As JSON."""
        return json.dumps({"steps": self.steps, "lost": {rank: asdict(loss) for rank, loss in self.lost.items()}})

    @classmethod
    def load(cls, text: bytes) -> Self:
        """From JSON."""
        facts = json.loads(text)
        return cls(tuple(facts["steps"]), {int(rank): Loss(**loss) for rank, loss in facts["lost"].items()})


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
        self.step, self.record = NOT_BEGUN, Record.load(store.get(RECORD))
        threading.Thread(target=self._keep, name="register", daemon=True).start()

    def _keep(self) -> None:
        count = 0
        while True:
            try:
                self._store.set(beat_key(self._rank), f"{self.step} {count}")  # the count tells a frozen worker from a slow one
                self.record = Record.load(self._store.get(RECORD))
            except RuntimeError:
                self._launcher_lost()
                return
            count += 1
            time.sleep(BEAT_SECONDS)
