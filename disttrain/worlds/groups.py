"""Replica groups: consecutive workers that train as one, beside other such groups.

Of six workers in groups of two::

    inside   [0, 1] [2, 3] [4, 5]     links inside a group are fast: a cabinet, a site
    across   [0, 2, 4] [1, 3, 5]      links between groups are slow; whoever has the same place in its group is a peer

What is equal inside a group goes to the others once: the member at place j carries part j, over connections of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from disttrain.worlds.traffic import all_gather_wire_bytes, all_reduce_wire_bytes
from disttrain.worlds.world import Lane, World


class Groups:
    """Lanes inside groups of ``size`` workers, and across them; to be made by every worker.

    Args:
        world: all workers.
        size: workers of a group.

    Raises:
        ValueError: unless the workers can be divided so.

    Attributes:
        number: how many groups there are.
        steps: a lane inside each group, for what its members exchange in a step. Another one than is for rounds: both
            may be under way, and a lane's messages are matched by their order.
    """

    def __init__(self, world: World, size: int) -> None:
        check_division(world.size, size)
        self.size, self.number = size, world.size // size
        self.steps = self._inside(world, "steps")
        self._rounds = self._inside(world, "rounds")
        self._places = world.positions % size
        self._across = [world.lane(f"rounds across place {place}", range(place, world.size, size)) for place in range(size)]

    @property
    def own_steps(self) -> Lane:
        """The lane of ``steps`` that this process has a member in; of rows, the first."""
        return next(lane for lane in self.steps if len(lane.rows))

    def _inside(self, world: World, name: str) -> Sequence[Lane]:
        starts = range(0, world.size, self.size)
        return [world.lane(f"{name} inside {first}", range(first, first + self.size)) for first in starts]

    def mean(self, x: Tensor) -> Tensor:
        """The mean over groups ``[1, d]``, fresh, of vectors ``[L, d]`` that are equal inside each group."""
        own = self.mean_of_shards(self.own_part(x))
        wholes = [lane.gather(own[lane.rows]) for lane in self._rounds]  # all alike, [0 or 1, size, part]
        whole = next(each for each in wholes if len(each))
        return whole.reshape(1, -1)[:, : x.shape[1]].contiguous()

    def own_part(self, x: Tensor) -> Tensor:
        """Of vectors ``[L, d]`` that are equal inside each group, the part that each worker carries: ``[L, ⌈d/size⌉]``."""
        part = self.part_size(x.shape[1])
        parts = pad(x, (0, self.size * part - x.shape[1])).view(len(x), self.size, part)
        return parts[torch.arange(len(x)), self._places]

    def gather(self, x: Tensor) -> Tensor:
        """What the members of each worker's own group have, in their order: ``[L, b]`` to ``[L, size, b]``."""
        members = x.new_empty(len(x), self.size, x.shape[1])
        for lane in self._rounds:
            members[lane.rows] = lane.gather(x[lane.rows])
        return members

    def mean_of_shards(self, x: Tensor) -> Tensor:
        """The mean over workers at the same place in their groups, ``[L, d]``, fresh, of their vectors ``[L, d]``."""
        means = torch.empty_like(x)
        for lane in self._across:
            means[lane.rows] = lane.mean(x[lane.rows])
        return means

    def wire_bytes(self, numel: int, element_size: int) -> int:
        """What a worker sends for :meth:`mean` of ``numel`` entries: across groups, then inside."""
        payload = self.part_size(numel) * element_size
        return all_reduce_wire_bytes(payload, self.number) + all_gather_wire_bytes(payload, self.size)

    def part_size(self, numel: int) -> int:
        """How many of so many entries a worker carries."""
        return -(-numel // self.size)


def check_division(num_workers: int, size: int) -> None:
    """Raise ValueError unless so many workers can be divided into groups of ``size``."""
    if num_workers % size:
        raise ValueError(
            f"group_size={size} does not divide {num_workers} workers into equal groups: their number must be a multiple of it"
        )
