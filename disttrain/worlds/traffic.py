"""What one worker hands to the network, what its interface sends for it, and how long it waits.

``wire_bytes`` follows from the algorithm of the collective: gloo and nccl all-reduce and all-gather over rings. Headers of
TCP/IP and of the backend's messages are not in the formulas; a test holds them against the kernel's count
of what each worker's connections sent.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields

from disttrain.worlds.trace import Trace

_COUNTING = threading.Lock()  # a worker's lanes count into the same totals
EXPOSED = "exposed communication"
"""The row of a trace on which a worker waits."""


@dataclass
class Traffic:
    """Running totals of one worker."""

    payload_bytes: int = 0
    """Handed to a World primitive."""
    wire_bytes: int = 0
    """Sent by this worker's interface, by the collective's formula."""
    exposed_seconds: float = 0.0
    """Spent waiting for the network while computing nothing."""
    collectives: int = 0
    """Calls of a World primitive."""
    trace: Trace | None = field(default=None, compare=False, repr=False)
    """When all this happens, if somebody wants to know."""

    def add(self, payload_bytes: int, wire_bytes: int) -> None:
        """Count one primitive."""
        with _COUNTING:
            self.payload_bytes += payload_bytes
            self.wire_bytes += wire_bytes
            self.collectives += 1

    def expose(self, seconds: float, what: str = "waiting") -> None:
        """Count time spent waiting, up to now."""
        with _COUNTING:
            self.exposed_seconds += seconds
        if self.trace is not None:
            now = time.perf_counter()
            self.trace.add(EXPOSED, what, now - seconds, now)

    def during(self, row: str, name: str) -> AbstractContextManager[None]:
        """Inside it, the worker does something that a trace shows."""
        return nullcontext() if self.trace is None else self.trace.during(row, name)

    def state(self) -> dict[str, float]:
        """The totals, for a checkpoint."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "trace"}

    def restore(self, state: dict[str, float]) -> None:
        """Take over totals saved by :meth:`state`; what this process has counted since its start is added."""
        self.payload_bytes += int(state["payload_bytes"])
        self.wire_bytes += int(state["wire_bytes"])
        self.exposed_seconds += state["exposed_seconds"]
        self.collectives += int(state["collectives"])


def all_reduce_wire_bytes(payload_bytes: int, world_size: int) -> int:
    """Sent per worker by a ring all-reduce: reduce-scatter, then all-gather, each (p-1)/p of the payload."""
    return round(2 * payload_bytes * (world_size - 1) / world_size)


def all_gather_wire_bytes(payload_bytes: int, world_size: int) -> int:
    """Sent per worker by a ring all-gather: every payload but the neighbour's own passes once."""
    return payload_bytes * (world_size - 1)


def transpose_wire_bytes(payload_bytes: int, world_size: int) -> int:
    """Sent per worker by an all-to-all: all of the payload but the worker's own part."""
    return round(payload_bytes * (world_size - 1) / world_size)


def exchange_wire_bytes(payload_bytes: int, num_receivers: int) -> int:
    """Sent by a worker that ``num_receivers`` others hear from: the payload to each."""
    return payload_bytes * num_receivers


def broadcast_wire_bytes(payload_bytes: int, rank: int, world_size: int) -> int:
    """Sent by ``rank`` in a broadcast from worker 0 down gloo's binomial tree: one payload to each of its children.

    On level l the 2^l workers that have the payload send it to those 2^l ranks further on.
    """
    levels = range((world_size - 1).bit_length())
    children = sum(rank < 2**level and rank + 2**level < world_size for level in levels)
    return payload_bytes * int(children)
