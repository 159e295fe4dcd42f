"""A world of processes that outlives its workers: who is lost is left out, who is late is heard later.

Before training begins everybody is needed, as in any other world. From then on nothing here waits for a worker that is lost, and
only the end, where all meet, waits for one that is late.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from disttrain.worlds.committed import CommittedMean
from disttrain.worlds.deadline import Deadline
from disttrain.worlds.lane import TorchLane
from disttrain.worlds.pair import ANNOUNCEMENT_BYTES, END, Exchange, Pair
from disttrain.worlds.register import Record, Register
from disttrain.worlds.store import TCPStore
from disttrain.worlds.surviving import Answer, SurvivesPeers
from disttrain.worlds.torch_world import TorchWorld
from disttrain.worlds.traffic import exchange_wire_bytes
from disttrain.worlds.world import MixingRound

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FOREVER = timedelta(days=30)  # gloo closes all pairs of a group when one wait expires


class SurvivingWorld(TorchWorld):
    """All workers that the launcher started, and how those that are left go on.

    Args:
        store: the launcher's.
        rank: this worker.
        timeout: of what everybody is needed for, and fails though nobody is lost.
        debug: as in :class:`TorchWorld`.
        launcher_lost: called when the launcher is gone; should end this process.
    """

    def __init__(
        self,
        store: TCPStore,
        rank: int,
        timeout: timedelta,
        debug: bool = False,
        launcher_lost: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(timeout=FOREVER, debug=debug)
        self._store, self.deadline = store, Deadline()
        self.register = Register(store.clone(), rank, launcher_lost)  # type: ignore[attr-defined]
        self._committed = CommittedMean(store, self.register, rank, timeout)

    @property
    def record(self) -> Record:
        """What the launcher says of all workers."""
        return self.register.record

    @property
    def leads(self) -> bool:
        """Whether this worker is the first of the living, who writes for all."""
        return self.record.survivors[0] == self.rank

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the living, ``[1, d]``, the same on all of them; called by all of them, equally often."""
        return self._blocking(lambda: self._committed(x))

    def lane(self, name: str, ranks: Sequence[int] | None = None) -> SurvivingLane:
        """A lane of all workers; to be made before training begins.

        Raises:
            ValueError: for some of the workers only.
        """
        if ranks is not None and list(ranks) != list(range(self.size)):
            raise ValueError(f"lane {name!r}: where workers may be lost, lanes are of all workers, got {list(ranks)}")
        lane = super().lane(name)
        assert isinstance(lane, SurvivingLane)
        return lane

    def _lane_of(self, name: str, group: ProcessGroup) -> SurvivingLane:
        return SurvivingLane(name, group, self)

    def latest(self, topic: str, own: Tensor) -> Tensor:
        """What the living have last said of ``topic``, and ``own [1, k]`` now: float64 ``[m, k]``."""
        self._store.set(f"{topic}/{self.rank}", json.dumps(own[0].tolist()))
        keys = [f"{topic}/{rank}" for rank in self.record.survivors]
        said = self._store.multi_get([key for key in keys if self._store.check([key])])
        return torch.tensor([json.loads(each) for each in said], dtype=torch.float64)

    def sign(self, name: str) -> None:
        """Tell all workers that something has happened."""
        self._store.set(name, "1")

    def signed(self, name: str) -> bool:
        """Whether it has."""
        return bool(self._store.check([name]))


class SurvivingLane(TorchLane, SurvivesPeers):
    """A lane whose exchanges wait until a deadline, and land when they land."""

    def __init__(self, name: str, group: ProcessGroup, world: SurvivingWorld) -> None:
        super().__init__(name, group, FOREVER, world.debug, world.traffic)
        self._world = world
        self._pairs: dict[int, Pair] = {}
        self._outstanding: dict[int, Exchange] = {}
        self._last_landed: dict[int, int] = {}
        self._known_lost: set[int] = set()
        self._unsure: set[int] = set()

    def living(self, step: int) -> Tensor:
        """As the launcher says."""
        return self._world.record.living(step)

    def answers(self, x: Tensor, round: MixingRound, weights: Tensor, step: int) -> list[Answer]:
        """Exchange with the peers of this round that are there; a peer whose last answer is outstanding is left out."""
        self._note_losses()
        row = x[0].to("cpu", copy=True).contiguous()  # it may be read long after x has changed
        started = []
        for peer, weight in zip(round.senders[self.rank].tolist(), weights[0].tolist(), strict=True):
            if peer != self.rank and peer not in self._outstanding and self._reaches(peer):
                started.append(Exchange(step, row, weight))
                self._outstanding[peer] = started[-1]
                self._pairs[peer].start(started[-1])
        self._count(row, len(started))
        wait([exchange.result for exchange in started], self._world.deadline.seconds)
        return self._landed(x, step)

    def settle(self, x: Tensor) -> list[Answer]:
        """Tell all that this worker is at its end, and wait until all are: by then every exchange has landed, or never will."""
        ends = []
        for peer in range(self.size):
            if peer != self.rank and self._reaches(peer):
                ends.append(Exchange(END, torch.empty(0)))
                self._pairs[peer].start(ends[-1])
        self._count(torch.empty(0), len(ends))
        wait([exchange.result for exchange in ends])
        self._note_losses()
        return self._landed(x, END)

    def latest_mean(self, values: Tensor) -> Tensor:
        """Through the launcher's store."""
        return self._world.latest(self.name, values).mean(0, keepdim=True).to(values)

    def _reaches(self, peer: int) -> bool:
        if peer in self._world.record.lost:
            return False
        if peer not in self._pairs:
            assert self.group is not None
            self._pairs[peer] = Pair(self.group, peer, lambda: self._half_done(peer))
        return not self._pairs[peer].lost

    def _landed(self, x: Tensor, step: int) -> list[Answer]:
        """All that is here: this round's in the order of peers, then earlier ones'."""
        here = [
            (exchange.step != step, exchange.step, peer) for peer, exchange in self._outstanding.items() if exchange.result.done()
        ]
        found = []
        for late, _, peer in sorted(here):
            exchange = self._outstanding.pop(peer)
            if exchange.result.exception() is not None:
                self._half_done(peer)
            elif (landed := exchange.result.result()) is not None:
                self._world.deadline.add(exchange.seconds)
                self._last_landed[peer] = exchange.step
                own = exchange.row[None].to(x) if late else x
                found.append(Answer(landed.theirs[None].to(x), own, torch.tensor([[landed.weight]], dtype=torch.float64).to(x)))
        return found

    def _note_losses(self) -> None:
        """Count the last exchange with a lost worker, unless that has told of a later step, and so has added its amount."""
        for peer, loss in self._world.record.lost.items():
            if peer in self._known_lost:
                continue
            self._known_lost.add(peer)
            if peer not in self._outstanding and self._last_landed.get(peer, -1) >= loss.step:
                self._half_done(peer)

    def _half_done(self, peer: int) -> None:
        """An exchange with ``peer`` may be: one, for the next begins when the one before has been added."""
        self._unsure.add(peer)
        self.lost_exchanges = len(self._unsure)

    def _count(self, row: Tensor, num_peers: int) -> None:
        if num_peers:
            num_bytes = row.numel() * row.element_size() + ANNOUNCEMENT_BYTES
            self.traffic.add(num_bytes, exchange_wire_bytes(num_bytes, num_peers))
