"""A world in one process: N workers as the rows of tensors ``[N, ...]``. No byte moves, and all are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from disttrain.worlds.in_flight import InFlight, LaneError, name_of
from disttrain.worlds.rank_order import rank_ordered_mean
from disttrain.worlds.traffic import (
    Traffic,
    all_gather_wire_bytes,
    all_reduce_wire_bytes,
    broadcast_wire_bytes,
    exchange_wire_bytes,
    transpose_wire_bytes,
)
from disttrain.worlds.world import Lane, MixingRound, check_mutual, members_of

HEARD_BYTES = 512 << 10
"""Of a slice of rows in :meth:`StackedWorld.exchange_by_rows`: with what is computed from them, they fit into a core's cache."""


class StackedWorld:
    """``size`` workers that all live here (``L = size``).

    Args:
        size: their number.
        debug: hold every job on a lane to the rules in `world.py`.

    Attributes:
        traffic: what worker 0 would have counted, had it been a process.
    """

    def __init__(self, size: int, debug: bool = False) -> None:
        self.size, self.debug = size, debug
        self.ids = self.positions = torch.arange(size)
        self.traffic, self._counted = Traffic(), 0

    def mean(self, x: Tensor) -> Tensor:
        """``[N, d]`` to ``[1, d]``: scaled, then summed in the order of the rows."""
        self._count(x, all_reduce_wire_bytes)
        return rank_ordered_mean(x)[None]

    def gather(self, x: Tensor) -> Tensor:
        """``[N, b]`` to ``[1, N, b]``."""
        self._count(x, all_gather_wire_bytes)
        return x.clone(memory_format=torch.contiguous_format)[None]

    def transpose(self, x: Tensor) -> Tensor:
        """``[N, N, b]`` to ``[N, N, b]``."""
        self._count(x, transpose_wire_bytes)
        return x.transpose(0, 1).clone(memory_format=torch.contiguous_format)

    def exchange(self, x: Tensor, round: MixingRound) -> Tensor:
        """``[N, b]`` to ``[N, k, b]``."""
        self._count_exchange(x, round)
        return x[round.senders]

    def exchange_by_rows(self, x: Tensor, round: MixingRound) -> Iterator[tuple[slice, Tensor]]:
        """``[N, b]`` to slices of rows and ``[r, k, b]``, of :data:`HEARD_BYTES` each, or of one row."""
        self._count_exchange(x, round)
        row_bytes = x[0].numel() * x.element_size() * round.senders.shape[1]
        num_rows = max(1, HEARD_BYTES // max(1, row_bytes))
        for start in range(0, self.size, num_rows):
            rows = slice(start, start + num_rows)
            heard = x.index_select(0, round.senders[rows].flatten())  # rows as a whole: x[senders] takes twice as long
            yield rows, heard.view(*round.senders[rows].shape, *x.shape[1:])

    def exchange_with(self, x: Tensor, peers: Tensor) -> Tensor:
        """``[N, b]`` to ``[N, k, b]``."""
        if self.debug:
            check_mutual(peers, self.size)
        if receivers := MixingRound(peers).receivers(self._counted):
            self._count(x, lambda num_bytes, _: exchange_wire_bytes(num_bytes, len(receivers)))
        return x[peers]

    def broadcast(self, x: Tensor) -> Tensor:
        """``[N, d]`` to ``[1, d]``."""
        self._count(x, lambda num_bytes, size: broadcast_wire_bytes(num_bytes, 0, size))
        return x[:1].clone()

    def lane(self, name: str, ranks: Sequence[int] | None = None) -> Lane:
        """All rows, or the rows ``ranks``; nothing has to keep them apart, since every job is done when it is started."""
        members = members_of(ranks, self.size)
        lane = StackedLane(self.ids[members], torch.tensor(members), self.debug)
        if self._counted in members:  # else what the lane sends is not of the worker that is counted
            lane.traffic, lane._counted = self.traffic, members.index(self._counted)
        return lane

    def _count_exchange(self, x: Tensor, round: MixingRound) -> None:
        round.check(self.size)
        self._count(x, lambda num_bytes, _: exchange_wire_bytes(num_bytes, len(round.receivers(self._counted))))

    def _count(self, x: Tensor, wire_bytes: Callable[[int, int], int]) -> None:
        num_bytes = x[0].numel() * x.element_size()
        self.traffic.add(num_bytes, wire_bytes(num_bytes, self.size))


class StackedLane(StackedWorld):
    """Some rows of a stacked world. A job runs when it is started: its value is named by its round, so nothing changes."""

    def __init__(self, ids: Tensor, rows: Tensor, debug: bool) -> None:
        super().__init__(len(ids), debug)
        self.ids, self.rows, self._busy = ids, rows, False

    def start(self, job: Callable[..., Any], *arguments: Any) -> InFlight:
        """Run ``job(*arguments)`` now; arguments are lent until take(), the result must be fresh, as on a lane of processes.

        Raises:
            LaneError: if a job on this lane starts another one.
        """
        if self._busy:
            raise LaneError(f"{name_of(job)} was started by a job on its own lane, and would wait for it for ever: call it")
        in_flight = InFlight(self.traffic, job, arguments if self.debug else ())
        self._busy = True
        in_flight.run(arguments, self.debug)
        in_flight.seconds = 0.0  # nothing was sent
        self._busy = False
        return in_flight
