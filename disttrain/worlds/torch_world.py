"""A world of processes: one worker each, joined by a ``torch.distributed`` process group (gloo or nccl)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from disttrain.worlds.in_flight import LaneError, LaneThread
from disttrain.worlds.traffic import (
    Traffic,
    all_gather_wire_bytes,
    all_reduce_wire_bytes,
    broadcast_wire_bytes,
    exchange_wire_bytes,
    transpose_wire_bytes,
)
from disttrain.worlds.world import Lane, MixingRound, check_mutual, members_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
DESCRIPTION_BYTES = 256


class TorchWorld:
    """The workers of a process group; this process is one of them (``L = 1``).

    Args:
        group: an initialised process group; by default the one of all processes.
        timeout: how long a message of a lane may take; None: torch's default.
        debug: check before each primitive that all workers call the same one, and of jobs on lanes that they obey the rules.
        traffic: where to count; by default from zero.
    """

    name = "world"
    row = "all-reduce"
    """Of a trace, for torch's own asynchronous messages."""

    def __init__(
        self,
        group: ProcessGroup | None = None,
        timeout: timedelta | None = None,
        debug: bool = False,
        traffic: Traffic | None = None,
    ) -> None:
        self.group = group or dist.group.WORLD
        self.timeout, self.debug, self.traffic = timeout, debug, traffic or Traffic()
        self.size = dist.get_world_size(self.group)
        self.rank = dist.get_rank(self.group)
        self.ids, self.positions = torch.tensor([dist.get_rank()]), torch.tensor([self.rank])
        self._calls = 0

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all workers, ``[1, d]``; summed by the backend's all-reduce, whose order it chooses."""
        return self._blocking(lambda: self.start_mean_(x.clone()).wait())

    def start_mean_(self, x: Tensor) -> torch.futures.Future[Tensor]:
        """Begin to overwrite ``x`` (any shape) with its mean over all workers; nobody may touch it until the future is done.

        Torch's own asynchronous all-reduce: a plain mean needs no thread of ours. Scaling comes before the sum and by
        the reciprocal, as in torch DDP, whose results this equals bit by bit.
        """
        self._about_to("mean", x)
        num_bytes = x.numel() * x.element_size()
        self.traffic.add(num_bytes, all_reduce_wire_bytes(num_bytes, self.size))
        x.mul_(1.0 / self.size)
        trace = None if isinstance(threading.current_thread(), LaneThread) else self.traffic.trace  # a lane's job is traced whole
        start = time.perf_counter()
        future: torch.futures.Future[list[Tensor]] = dist.all_reduce(x, group=self.group, async_op=True).get_future()

        def land(sum_: torch.futures.Future[list[Tensor]]) -> Tensor:
            sum_.value()  # raises what went wrong; without it, a lost peer is silent
            if trace is not None:
                trace.add(self.row, f"{num_bytes / 1e6:.2f} MB", start, time.perf_counter())
            return x

        return future.then(land)

    def gather(self, x: Tensor) -> Tensor:
        """Everybody's row ``[1, b]``, in worker order: ``[1, size, b]``."""
        return self._blocking(lambda: self._gather(x))

    def transpose(self, x: Tensor) -> Tensor:
        """All-to-all of ``[1, size, b]``: row r of the result is worker r's row for this one."""
        return self._blocking(lambda: self._transpose(x))

    def exchange(self, x: Tensor, round: MixingRound) -> Tensor:
        """The rows ``[1, k, b]`` of this worker's peers; ``x [1, b]`` goes to all that name this one."""
        return self._blocking(lambda: self._exchange(x, round))

    def exchange_by_rows(self, x: Tensor, round: MixingRound) -> Iterator[tuple[slice, Tensor]]:
        """This worker's row, once."""
        yield slice(0, 1), self.exchange(x, round)

    def exchange_with(self, x: Tensor, peers: Tensor) -> Tensor:
        """The rows ``[1, k, b]`` of this worker's peers ``[1, k]``, to whom ``x [1, b]`` goes."""
        return self._blocking(lambda: self._exchange_with(x, peers))

    def broadcast(self, x: Tensor) -> Tensor:
        """Worker 0's row ``[1, d]``, as a copy."""
        return self._blocking(lambda: self._broadcast(x))

    def lane(self, name: str, ranks: Sequence[int] | None = None) -> Lane:
        """A process group (3 threads, in gloo) and a thread of ours, for the members ``ranks`` of this world; None: all.

        Raises:
            ValueError: if there are no such members.
        """
        from disttrain.worlds.lane import AbsentLane  # a lane is a TorchWorld

        ranks_inside = members_of(ranks, self.size)
        self._blocking(lambda: self._about_to(f"lane {name!r} of {ranks_inside}", self.ids))
        everybody = dist.get_process_group_ranks(self.group)
        members = [everybody[rank] for rank in ranks_inside]
        is_member, among_members = dist.get_rank() in members, len(everybody) < dist.get_world_size()
        group = None
        if is_member or not among_members:  # without local synchronization, torch wants every process to take part
            group = dist.new_group(members, timeout=self.timeout, use_local_synchronization=among_members)
        if dist.get_backend(self.group) == "gloo":  # which returns to whoever is connected itself: a worker that goes on, and
            self._blocking(self._meet)  # soon ends, would break the others' connecting
        if group is None or not is_member:
            return AbsentLane(len(members), self.traffic)
        return self._lane_of(name, group)

    def _lane_of(self, name: str, group: ProcessGroup) -> Lane:
        from disttrain.worlds.lane import TorchLane

        return TorchLane(name, group, self.timeout, self.debug, self.traffic)

    def _meet(self) -> Tensor:
        """Wait until all workers are here."""
        dist.barrier(group=self.group)
        return self.ids

    def _gather(self, x: Tensor) -> Tensor:
        self._about_to("gather", x)
        num_bytes = x.numel() * x.element_size()
        self.traffic.add(num_bytes, all_gather_wire_bytes(num_bytes, self.size))
        return self._all_gather(x)[None]

    def _all_gather(self, x: Tensor) -> Tensor:
        everybody = torch.empty(self.size, *x.shape[1:], dtype=x.dtype, device=x.device)
        _all_gather(everybody, x.contiguous(), group=self.group)
        return everybody

    def _transpose(self, x: Tensor) -> Tensor:
        self._about_to("transpose", x)
        num_bytes = x.numel() * x.element_size()
        self.traffic.add(num_bytes, transpose_wire_bytes(num_bytes, self.size))
        for_me = torch.empty(x.shape[1:], dtype=x.dtype, device=x.device)
        dist.all_to_all_single(_raw(for_me), _raw(x[0].contiguous()), group=self.group)
        return for_me[None]

    def _exchange(self, x: Tensor, round: MixingRound) -> Tensor:
        round.check(self.size)
        senders, receivers = round.senders[self.rank].tolist(), round.receivers(self.rank)
        self._about_to("exchange", x, str(hash(tuple(round.senders.flatten().tolist()))))
        num_bytes = x.numel() * x.element_size()
        self.traffic.add(num_bytes, exchange_wire_bytes(num_bytes, len(receivers)))
        return self._send_and_receive(x, senders, receivers)

    def _exchange_with(self, x: Tensor, peers: Tensor) -> Tensor:
        self._about_to(f"exchange with {peers.shape[1]} peers at most", x)
        if self.debug:
            check_mutual(self._all_gather(peers), self.size)
        senders = peers[0].tolist()
        receivers = sorted(set(senders) - {self.rank})
        if receivers:
            num_bytes = x.numel() * x.element_size()
            self.traffic.add(num_bytes, exchange_wire_bytes(num_bytes, len(receivers)))
        return self._send_and_receive(x, senders, receivers)

    def _send_and_receive(self, x: Tensor, senders: list[int], receivers: list[int]) -> Tensor:
        row = x[0].contiguous()
        rows = {peer: torch.empty_like(row) for peer in senders if peer != self.rank}
        receiving = [dist.P2POp(dist.irecv, _raw(into), group=self.group, group_peer=peer) for peer, into in rows.items()]
        sending = [dist.P2POp(dist.isend, _raw(row), group=self.group, group_peer=peer) for peer in receivers]
        if receiving or sending:
            for work in dist.batch_isend_irecv(receiving + sending):
                work.wait()
        heard = x.new_empty(1, len(senders), *x.shape[1:])
        for place, peer in enumerate(senders):
            heard[0, place] = rows.get(peer, row)
        return heard

    def _broadcast(self, x: Tensor) -> Tensor:
        self._about_to("broadcast", x)
        num_bytes = x.numel() * x.element_size()
        self.traffic.add(num_bytes, broadcast_wire_bytes(num_bytes, self.rank, self.size))
        row = x.clone(memory_format=torch.contiguous_format)
        dist.broadcast(row, group=self.group, group_src=0)
        return row

    def _blocking(self, primitive: Callable[[], Tensor]) -> Tensor:
        start = time.perf_counter()
        try:
            return primitive()
        finally:
            self.traffic.expose(time.perf_counter() - start)

    def _about_to(self, call: str, x: Tensor, more: str = "") -> Tensor:
        """In debug mode, tell the others what comes next; backends match messages by order alone, and sum what they get.

        Raises:
            LaneError: if another worker is about to do something else.
        """
        if not self.debug:
            return x
        self._calls += 1
        text = f"call {self._calls}: {call} of {str(x.dtype).removeprefix('torch.')} {list(x.shape)}{self._job_name()} {more}"
        mine = torch.frombuffer(bytearray(text.encode()[:DESCRIPTION_BYTES].ljust(DESCRIPTION_BYTES)), dtype=torch.uint8)
        everybody = [bytes(row.tolist()).decode().strip() for row in self._all_gather(mine.to(x.device)[None])]
        for rank, other in enumerate(everybody):
            if other != everybody[0]:
                raise LaneError(
                    f"the workers are out of order on {self.name}: worker 0 is at {everybody[0]}; worker {rank} at {other}"
                )
        return x

    def _job_name(self) -> str:
        return ""


def _raw(x: Tensor) -> Tensor:
    """The bytes of a contiguous tensor, shape ``[numel · element_size]``: gloo moves no bf16 by all-to-all."""
    return x.view(-1).view(torch.uint8)
