"""A world of processes that outlives its workers: who is lost is left out, who is late is heard later.

Before training begins everybody is needed, as in any other world. From then on nothing here waits for a worker that is lost, and
only the end, where all meet, waits for one that is late.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from disttrain.worlds.committed import CommittedMean
from disttrain.worlds.deadline import Deadline
from disttrain.worlds.handover import FOREVER, give, joined, take
from disttrain.worlds.lane import TorchLane
from disttrain.worlds.pair import ANNOUNCEMENT_BYTES, END, Exchange, Pair
from disttrain.worlds.register import Record, Register, ready_key
from disttrain.worlds.store import TCPStore
from disttrain.worlds.surviving import Answer, SurvivesPeers
from disttrain.worlds.torch_world import TorchWorld
from disttrain.worlds.traffic import exchange_wire_bytes
from disttrain.worlds.world import MixingRound

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SurvivingWorld(TorchWorld):
    """All workers that the launcher started, and how those that are left go on.

    Args:
        store: the launcher's.
        rank: this worker.
        timeout: of what everybody is needed for, and fails though nobody is lost.
        debug: as in :class:`TorchWorld`.
        launcher_lost: called when the launcher is gone; should end this process.
        life: how often this rank was started again.
    """

    def __init__(
        self,
        store: TCPStore,
        rank: int,
        timeout: timedelta,
        debug: bool = False,
        launcher_lost: Callable[[], None] = lambda: None,
        life: int = 0,
    ) -> None:
        super().__init__(timeout=FOREVER, debug=debug)
        self.store, self.life, self.deadline = store, life, Deadline()
        self.register = Register(store.clone(), rank, launcher_lost)  # type: ignore[attr-defined]
        self.committed = CommittedMean(store, self.register, rank, timeout)

    @property
    def record(self) -> Record:
        """What the launcher says of all workers."""
        return self.register.record

    @property
    def leads(self) -> bool:
        """Whether this worker is the first of the living, who writes for all."""
        return self.record.seniority[:1] == [self.rank]

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the living, ``[1, d]``, the same on all of them; called by all of them, equally often."""
        return self._blocking(lambda: self.committed(x))

    def lane(self, name: str, ranks: Sequence[int] | None = None) -> SurvivingLane:
        """A lane of all workers; to be made before training begins.

        Raises:
            ValueError: for some of the workers only.
        """
        self._refuse_some(name, ranks)
        lane = super().lane(name)
        assert isinstance(lane, SurvivingLane)
        return lane

    def _refuse_some(self, name: str, ranks: Sequence[int] | None) -> None:
        if ranks is not None and list(ranks) != list(range(self.size)):
            raise ValueError(f"lane {name!r}: where workers may be lost, lanes are of all workers, got {list(ranks)}")

    def _lane_of(self, name: str, group: ProcessGroup) -> SurvivingLane:
        return SurvivingLane(name, group, self)

    def latest(self, topic: str, own: Tensor) -> Tensor:
        """What the living have last said of ``topic``, and ``own [1, k]`` now: float64 ``[m, k]``."""
        self.store.set(f"{topic}/{self.rank}", json.dumps(own[0].tolist()))
        keys = [f"{topic}/{rank}" for rank in self.record.survivors]
        said = self.store.multi_get([key for key in keys if self.store.check([key])])
        return torch.tensor([json.loads(each) for each in said], dtype=torch.float64)

    def sign(self, name: str, what: str = "") -> None:
        """Tell all workers, those that come later too, that something has happened."""
        self.store.set(name, what)

    def signed(self, name: str) -> str | None:
        """What was told; None if nothing was."""
        return self.store.get(name).decode() if self.store.check([name]) else None

    def give_state(self, taker: int, messages: Sequence[bytes]) -> None:
        """Hand this worker's state to one that was started again, beside whatever goes on; ends with it, or with this one."""
        life = self.record.lives[taker]
        name = f"state/{taker}.{life}"

        def handing() -> None:
            with contextlib.suppress(RuntimeError):  # who was to take it is lost, which the launcher sees
                give(joined(self.store, name, 0, lambda: self.record.lives[taker] == life), messages, self.traffic)

        threading.Thread(target=handing, name=name, daemon=True).start()

    def take_state(self, number: int, patient: Callable[[], bool]) -> list[bytes] | None:
        """So many messages of a worker that the launcher names; None if this one is not to wait any more.

        Raises:
            RuntimeError: if that worker is lost.
        """
        self.store.set(ready_key(self.rank, self.life), "")
        while (giver := self.record.givers.get(self.rank)) is None:
            if not patient():
                return None
            time.sleep(0.005)
        name = f"state/{self.rank}.{self.life}"
        try:
            return take(joined(self.store, name, 1, lambda: patient() and giver not in self.record.lost), number)
        except RuntimeError as error:
            if not patient():
                return None
            raise RuntimeError(f"rank {giver}, whose state this worker was to take, is lost ({error})") from error


class SurvivingLane(TorchLane, SurvivesPeers):
    """A lane whose exchanges wait until a deadline, and land when they land.

    Args:
        name: for error messages.
        group: of all first lives; None: this is a later one.
        world: whose lane it is.
    """

    def __init__(self, name: str, group: ProcessGroup | None, world: SurvivingWorld) -> None:
        super().__init__(name, group, FOREVER, world.debug, world.traffic)
        self.size, self.rank, self.ids, self.positions = world.size, world.rank, world.ids, world.positions
        self._world, self._topic, self._first_lives = world, name, group
        self._pairs: dict[int, tuple[int, Pair]] = {}  # with the peer's life
        self._outstanding: dict[int, Exchange] = {}
        self._last_landed: dict[int, int] = {}
        self._known_losses = {peer: len(losses) for peer, losses in world.record.losses.items()}
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
            if peer != self.rank and peer not in self._outstanding and (pair := self._pair(peer)):
                started.append(Exchange(step, row, weight))
                self._outstanding[peer] = started[-1]
                pair.start(started[-1])
        self._count(row, len(started))
        wait([exchange.result for exchange in started], self._world.deadline.seconds)
        return self._landed(x, step)

    def settle(self, x: Tensor) -> list[Answer]:
        """Tell all that this worker is at its end, and wait until all are: by then every exchange has landed, or never will."""
        ends = []
        for peer in range(self.size):
            if peer != self.rank and (pair := self._pair(peer)):
                ends.append(Exchange(END, torch.empty(0)))
                pair.start(ends[-1])
        self._count(torch.empty(0), len(ends))
        wait([exchange.result for exchange in ends])
        self._note_losses()
        return self._landed(x, END)

    def latest_mean(self, values: Tensor) -> Tensor:
        """Through the launcher's store."""
        return self._world.latest(self.name, values).mean(0, keepdim=True).to(values)

    def _pair(self, peer: int) -> Pair | None:
        """This worker's end of the connection with a peer's present life; None if it is lost."""
        record = self._world.record
        if peer in record.lost:
            return None
        life = record.lives.get(peer, 0)
        known, pair = self._pairs.get(peer, (-1, None))
        if pair is None or known != life:
            pair = Pair(lambda: self._connect(peer, life), peer, lambda: self._half_done(peer))
            self._pairs[peer] = life, pair
        return None if pair.lost else pair

    def _connect(self, peer: int, life: int) -> tuple[ProcessGroup, int]:
        if self._first_lives is not None and life == 0:
            return self._first_lives, peer
        world, own = self._world, int(self.rank > peer)
        ends = sorted([(self.rank, world.life), (peer, life)])
        name = f"pair/{self._topic}/" + "-".join(f"{rank}.{each}" for rank, each in ends)

        def wanted() -> bool:
            return peer not in world.record.lost and world.record.lives.get(peer, 0) == life

        return joined(world.store, name, own, wanted), 1 - own

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
        for peer, losses in self._world.record.losses.items():
            if len(losses) == self._known_losses.get(peer, 0):
                continue
            self._known_losses[peer] = len(losses)
            if peer not in self._outstanding and self._last_landed.get(peer, -1) >= losses[-1].step:
                self._half_done(peer)

    def _half_done(self, peer: int) -> None:
        """An exchange with ``peer`` may be: one, for the next begins when the one before has been added."""
        self._unsure.add(peer)
        self.lost_exchanges = len(self._unsure)

    def _count(self, row: Tensor, num_peers: int) -> None:
        if num_peers:
            num_bytes = row.numel() * row.element_size() + ANNOUNCEMENT_BYTES
            self.traffic.add(num_bytes, exchange_wire_bytes(num_bytes, num_peers))
