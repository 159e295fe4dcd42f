"""The contract of a world: the only door through which an algorithm's bytes leave.

Leading axes are workers that live in this process: one under torchrun, all of them in a simulator. A result that is equal
for all workers has a leading axis of 1, which broadcasts against ``[L, ...]``.

An algorithm is blocking, ordered code; whether it runs while training goes on is a property of the lane that runs it. A job
started on a lane obeys two rules, which are what makes rows and processes equal:

- its arguments are *lent* until its result is taken: nobody writes to them;
- its result is *fresh*: no tensor that lives on shares its memory, for it may be read while later jobs run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from disttrain.worlds.in_flight import InFlight
from disttrain.worlds.traffic import Traffic


@dataclass(frozen=True, eq=False)
class MixingRound:
    """Who hears from whom in one exchange.

    Attributes:
        senders: int64 ``[size, k]``: worker i receives from ``senders[i]``; from itself (which costs nothing) where it
            has fewer than k peers.
    """

    senders: Tensor

    def check(self, size: int) -> None:
        """Raise ValueError unless it is a round of ``size`` workers."""
        if self.senders.ndim != 2 or len(self.senders) != size:
            raise ValueError(f"a mixing round of {size} workers needs senders [{size}, k], got {list(self.senders.shape)}")

    def receivers(self, worker: int) -> list[int]:
        """The other workers that hear from ``worker``, in order."""
        hears = (self.senders == worker).any(1)
        hears[worker] = False
        return [int(each) for each in hears.nonzero()]


def check_mutual(peers: Tensor, size: int) -> None:
    """Raise ValueError unless in ``peers [size, k]`` whoever is in a worker's row has that worker in its own."""
    MixingRound(peers).check(size)
    names = torch.zeros(size, size, dtype=torch.bool).scatter_(1, peers, True)
    if alone := [(int(one), int(other)) for one, other in (names & ~names.T).nonzero()]:
        raise ValueError(f"worker {alone[0][0]} would wait for worker {alone[0][1]}, which does not know of it")


def members_of(ranks: Sequence[int] | None, size: int) -> list[int]:
    """The members of a lane among ``size`` workers, ascending.

    Raises:
        ValueError: if one does not exist, or is given twice.
    """
    members = list(range(size)) if ranks is None else sorted(ranks)
    if not members or len(set(members)) < len(members) or members[0] < 0 or members[-1] >= size:
        raise ValueError(f"a lane's ranks must be different ones of 0 to {size - 1}, got {members}")
    return members


class World(Protocol):
    """``size`` workers, of which ``L = len(ids)`` live here. Every worker calls the blocking primitives in the same order."""

    size: int
    """Workers of this world."""
    ids: Tensor
    """int64 ``[L]``: the workers that live in this process, by their number in the whole run."""
    positions: Tensor
    """int64 ``[L]``: the same workers by their number in this world, from 0 to ``size - 1``."""
    traffic: Traffic
    """What one worker has handed over and sent so far."""

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all workers: ``[L, d]`` to ``[1, d]``, summed in ``x``'s own dtype."""

    def gather(self, x: Tensor) -> Tensor:
        """Everybody's rows, in worker order: ``[L, b]`` to ``[1, size, b]``."""

    def transpose(self, x: Tensor) -> Tensor:
        """All-to-all: ``[L, size, b]`` to ``[L, size, b]``, where a worker's row r is what worker r had for it."""

    def exchange(self, x: Tensor, round: MixingRound) -> Tensor:
        """What a worker's k peers of this round sent: ``[L, b]`` to ``[L, k, b]``."""

    def exchange_with(self, x: Tensor, peers: Tensor) -> Tensor:
        """The same where a worker knows its own peers only, who must be mutual: ``[L, b]`` to ``[L, k, b]``.

        Args:
            x: goes to all peers.
            peers: int64 ``[L, k]``; a worker itself (which costs nothing) where it has fewer than k. Whoever is in a worker's
                row has that worker in its own.
        """

    def exchange_by_rows(self, x: Tensor, round: MixingRound) -> Iterator[tuple[slice, Tensor]]:
        """The same, some of the workers that live here after the others: slices of rows, and what these heard, ``[r, k, b]``.

        For whoever needs each worker's peers only once: what all workers hear may be more than memory holds, and what a few
        hear is still in the cache when it is read. To be read to its end.
        """

    def broadcast(self, x: Tensor) -> Tensor:
        """Worker 0's row: ``[L, d]`` to ``[1, d]``."""

    def lane(self, name: str, ranks: Sequence[int] | None = None) -> Lane:
        """A way for messages of its own, past all others; to be called by every worker, in the same order.

        Args:
            name: for error messages.
            ranks: the members, numbered within this world, in any order (the lane's is ascending); None: all. Where none of
                them lives, L is 0.
        """


class Lane(World, Protocol):
    """A world whose jobs run in the order of their submission, while the caller goes on."""

    rows: Tensor
    """int64 ``[L]``: which rows of this process's workers belong to this lane."""

    def start(self, job: Callable[..., Any], *arguments: Any) -> InFlight:
        """Run ``job(*arguments)`` on this lane; its primitives are those of this lane, and block only each other."""
