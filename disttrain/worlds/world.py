"""The contract of a world: the only door through which an algorithm's bytes leave.

Leading axes are workers that live in this process: one under torchrun, all of them in a simulator. A result that is equal
for all workers has a leading axis of 1, which broadcasts against ``[L, ...]``.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from disttrain.worlds.traffic import Traffic


class World(Protocol):
    """``size`` workers, of which ``L = len(ids)`` live here. Every worker calls the blocking primitives in the same order."""

    size: int
    """Workers of this world."""
    ids: Tensor
    """int64 ``[L]``: the workers that live in this process."""
    traffic: Traffic
    """What one worker has handed over and sent so far."""

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all workers: ``[L, d]`` to ``[1, d]``, summed in ``x``'s own dtype."""

    def gather(self, x: Tensor) -> Tensor:
        """Everybody's rows, in worker order: ``[L, b]`` to ``[1, size, b]``."""

    def broadcast(self, x: Tensor) -> Tensor:
        """Worker 0's row: ``[L, d]`` to ``[1, d]``."""
