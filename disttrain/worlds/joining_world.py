"""The world of a worker that was started again while the others train on.

Whatever a run asks of all workers before it trains (is everybody's data the same? what are worker 0's weights?) they have
answered long ago; so a worker that comes later asks nobody, and hears its own answer from everybody. What its parameters are, it
takes from one of them (`handover.py`). From then on its world is like theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
from torch import Tensor

from disttrain.worlds.store import TCPStore
from disttrain.worlds.surviving_world import SurvivingLane, SurvivingWorld


class JoiningWorld(SurvivingWorld):
    """All workers, as seen by one that comes later. Its process group holds it alone.

    Args:
        store: the launcher's.
        rank: this worker.
        size: of the run.
        life: the number of this life.
        timeout: as in :class:`SurvivingWorld`.
        debug: as there.
        launcher_lost: as there.
    """

    def __init__(
        self,
        store: TCPStore,
        rank: int,
        size: int,
        life: int,
        timeout: timedelta,
        debug: bool = False,
        launcher_lost: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(store, rank, timeout, debug, launcher_lost, life)
        self.size, self.rank = size, rank
        self.ids, self.positions = torch.tensor([rank]), torch.tensor([rank])

    def gather(self, x: Tensor) -> Tensor:
        """What this worker says, ``size`` times."""
        return x[:, None].expand(-1, self.size, *x.shape[1:]).clone()

    def broadcast(self, x: Tensor) -> Tensor:
        """This worker's own row."""
        return x.clone()

    def lane(self, name: str, ranks: Sequence[int] | None = None) -> SurvivingLane:
        """A lane whose connections are yet to be made."""
        self._refuse_some(name, ranks)
        return SurvivingLane(name, None, self)
