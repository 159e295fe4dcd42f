"""Exchanges between two workers either of which may be late, or lost: one at a time, and both ends agree on which took place.

Each end announces, in 16 bytes, the step as of which it wants to exchange; steps ascend. If both announce the same step, they
exchange their vectors. If one end announces a later step than the other waits with, it has skipped that step, and the other gives
it up. So what takes place is what the two sequences have in common, whatever the timing is, and nothing is sent in vain.

gloo allows no shorter wait than for ever (one that expires closes all pairs of the group) and no look at whether a message has
come. So every pair has a thread that waits, and who wants to wait less waits for its future.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

ANNOUNCEMENT, VECTOR = 1, 2  # tags
ANNOUNCEMENT_BYTES = 16
END = 2**53  # a step that is never made; announced by who will exchange no more


class Landed(NamedTuple):
    """What came of an exchange that took place."""

    theirs: Tensor
    weight: float
    """The smaller one, should the two ends disagree."""


@dataclass(eq=False)
class Exchange:
    """One that this end wants.

    Attributes:
        step: as of which.
        row: what is sent, ``[b]``; nobody writes to it.
        weight: what this end would give to the difference.
        result: None if the peer has skipped the step; RuntimeError if the peer is lost.
        seconds: that it took.
    """

    step: int
    row: Tensor
    weight: float = 0.0
    result: Future[Landed | None] = field(default_factory=Future)
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0


class Pair:
    """This worker's end of its exchanges with ``peer``.

    Args:
        connect: waits for the other end, in the pair's own thread; a gloo group, with a timeout that never comes, and the other
            end's rank in it.
        peer: the other end.
        half_done: called if the peer is lost after its vector came, and perhaps before this one's went.

    Attributes:
        lost: whether the connection is.
    """

    def __init__(self, connect: Callable[[], tuple[ProcessGroup, int]], peer: int, half_done: Callable[[], None]) -> None:
        self._connect, self._half_done, self.lost = connect, half_done, False
        self._connection: tuple[ProcessGroup, int] | None = None
        self._wanted: queue.SimpleQueue[Exchange] = queue.SimpleQueue()
        self._theirs: tuple[int, float] | None = None  # announced by the peer, and not yet reached by this end
        self._sending: list[tuple[Work, Tensor]] = []  # a message may be read long after it was sent
        threading.Thread(target=self._work, name=f"pair with {peer}", daemon=True).start()

    def start(self, exchange: Exchange) -> None:
        """Begin, or wait for the one before to end."""
        self._wanted.put(exchange)

    def _work(self) -> None:
        while True:
            exchange = self._wanted.get()
            try:
                if self.lost:
                    raise RuntimeError("lost before")
                self._make(exchange)
            except RuntimeError as error:
                self.lost = True
                if exchange.result.done():
                    self._half_done()
                else:
                    exchange.result.set_exception(error)

    def _make(self, exchange: Exchange) -> None:
        self._connection = self._connection or self._connect()
        self._announce(exchange)
        while self._theirs is None or self._theirs[0] < exchange.step:
            self._theirs = self._heard()
        step, weight = self._theirs
        if step > exchange.step:
            exchange.result.set_result(None)
            return
        self._theirs = None
        if step == END:
            exchange.result.set_result(None)
        else:
            self._swap(exchange, weight)
        while self._sending:  # the peer has read all of them
            self._sending.pop()[0].wait()

    def _announce(self, exchange: Exchange) -> None:
        words = torch.tensor([exchange.step, exchange.weight], dtype=torch.float64)
        self._sending.append((self._send(words, ANNOUNCEMENT), words))

    def _heard(self) -> tuple[int, float]:
        words = torch.empty(2, dtype=torch.float64)
        self._receive(words, ANNOUNCEMENT).wait()
        return int(words[0]), float(words[1])

    def _swap(self, exchange: Exchange, weight: float) -> None:
        theirs = torch.empty_like(exchange.row)
        receiving = self._receive(theirs.view(torch.uint8), VECTOR)
        sending = self._send(exchange.row.view(torch.uint8), VECTOR)
        receiving.wait()
        exchange.seconds = time.monotonic() - exchange.started
        exchange.result.set_result(Landed(theirs, min(weight, exchange.weight)))
        sending.wait()

    def _send(self, message: Tensor, tag: int) -> Work:
        assert self._connection is not None
        group, peer = self._connection
        return group.send([message], peer, tag)

    def _receive(self, into: Tensor, tag: int) -> Work:
        assert self._connection is not None
        group, peer = self._connection
        return group.recv([into], peer, tag)
