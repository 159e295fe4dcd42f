"""A world of processes: one worker each, joined by a ``torch.distributed`` process group (gloo or nccl)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from disttrain.worlds.traffic import Traffic, all_gather_wire_bytes, all_reduce_wire_bytes, broadcast_wire_bytes

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13


class TorchWorld:
    """The workers of a process group; this process is one of them (``L = 1``).

    Args:
        group: an initialised process group; by default the one of all processes.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group or dist.group.WORLD
        self.size = dist.get_world_size(self.group)
        self.rank = dist.get_rank(self.group)
        self.ids = torch.tensor([self.rank])
        self.traffic = Traffic()

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all workers, ``[1, d]``; summed by the backend's all-reduce, whose order it chooses."""
        with self._blocking():
            return self.start_mean_(x.clone()).wait()

    def start_mean_(self, x: Tensor) -> torch.futures.Future[Tensor]:
        """Begin to overwrite ``x`` (any shape) with its mean over all workers; nobody may touch it until the future is done.

        Torch's own asynchronous all-reduce: a plain mean needs no thread of ours. Scaling comes before the sum and by
        the reciprocal, as in torch DDP, whose results this equals bit by bit.
        """
        num_bytes = x.numel() * x.element_size()
        self.traffic.add(num_bytes, all_reduce_wire_bytes(num_bytes, self.size))
        x.mul_(1.0 / self.size)
        future: torch.futures.Future[list[Tensor]] = dist.all_reduce(x, group=self.group, async_op=True).get_future()
        return future.then(lambda sum_: (sum_.value(), x)[1])  # value() raises what went wrong; without it, a lost peer is silent

    def gather(self, x: Tensor) -> Tensor:
        """Everybody's row ``[1, b]``, in worker order: ``[1, size, b]``."""
        num_bytes = x.numel() * x.element_size()
        self.traffic.add(num_bytes, all_gather_wire_bytes(num_bytes, self.size))
        everybody = torch.empty(self.size, *x.shape[1:], dtype=x.dtype, device=x.device)
        with self._blocking():
            _all_gather(everybody, x.contiguous(), group=self.group)
        return everybody[None]

    def broadcast(self, x: Tensor) -> Tensor:
        """Worker 0's row ``[1, d]``, as a copy."""
        num_bytes = x.numel() * x.element_size()
        self.traffic.add(num_bytes, broadcast_wire_bytes(num_bytes, self.rank, self.size))
        row = x.clone(memory_format=torch.contiguous_format)
        with self._blocking():
            dist.broadcast(row, group=self.group, group_src=0)
        return row

    @contextmanager
    def _blocking(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.traffic.exposed_seconds += time.perf_counter() - start
