"""Owner-computes: the matrices of an optimizer are dealt to the workers, each steps its own, and the results are gathered once.

Under data parallelism every worker has the same gradients and would do the same work. Which worker owns what is a pure function
of names, shapes, costs and the number of workers: longest processing time first, so that no worker has more than the mean plus
one largest matrix (Graham, 1969).

What goes over the wire is rounded to its dtype, and everybody, the owner too, applies the rounded value: replicas stay equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

import torch
from torch import Tensor

from disttrain.worlds.world import World

WireDtype = Literal["bfloat16", "float32"]
DTYPES: dict[WireDtype, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def deal(costs: Mapping[str, float], workers: int) -> dict[str, int]:
    """The owner of each name: the costliest first, each to the worker that has the least so far."""
    loads, owners = [0.0] * workers, {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owner = min(range(workers), key=lambda worker: (loads[worker], worker))
        owners[name] = owner
        loads[owner] += costs[name]
    return owners


class Sharding:
    """Who owns which matrices, and how directions come together.

    Args:
        world: its workers have the same gradients.
        matrices: shape ``(count, m, n)`` and cost by name; the same on every worker.
        dtype: of directions on the wire.
        device: of the parameters.
    """

    def __init__(
        self, world: World, matrices: Mapping[str, tuple[tuple[int, int, int], float]], dtype: WireDtype, device: torch.device
    ) -> None:
        self.world, self.dtype, self._device, self._rank = world, DTYPES[dtype], device, int(world.positions[0])
        self.shapes = {name: shape for name, (shape, _) in matrices.items()}
        self.owners = deal({name: cost for name, (_, cost) in matrices.items()}, world.size)
        self._names = [[name for name in self.shapes if self.owners[name] == rank] for rank in range(world.size)]

    def owns(self, name: str) -> bool:
        """Whether this worker computes ``name``."""
        return self.owners[name] == self._rank

    def exchange(self, moves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Everybody's directions from this worker's own, all rounded alike. To be called by every worker in every step.

        Args:
            moves: ``[count, m, n]`` by name; those of this worker's that do not move are left out.

        Returns:
            The same of all workers, in float32.
        """
        # A flag goes before each matrix: whoever owns it says whether it moves, and all do as it says.
        numels = {name: 1 + prod(shape) for name, shape in self.shapes.items()}
        rows = {name: torch.zeros(numels[name], dtype=self.dtype, device=self._device) for name in self._names[self._rank]}
        for name, move in moves.items():
            rows[name][0] = 1
            rows[name][1:] = move.reshape(-1)
        gathered = self.gather(rows, numels, self.dtype)
        moving = torch.stack([gathered[name][0] for name in self.shapes]).tolist()
        return {
            name: gathered[name][1:].float().view(shape)
            for (name, shape), moves_now in zip(self.shapes.items(), moving, strict=True)
            if moves_now
        }

    def gather(self, own: Mapping[str, Tensor], numels: Mapping[str, int], dtype: torch.dtype) -> dict[str, Tensor]:
        """One vector for each matrix, from its owner to everybody, by a single gather.

        Args:
            own: this worker's.
            numels: entries of everybody's.
            dtype: on the wire, the same on every worker.
        """
        width = max(sum(numels[name] for name in names) for names in self._names)
        row = torch.zeros(1, width, dtype=dtype, device=self._device)
        start = 0
        for name in self._names[self._rank]:
            row[0, start : start + numels[name]] = own[name]
            start += numels[name]
        gathered = {}
        for names, theirs in zip(self._names, self.world.gather(row)[0], strict=True):
            start = 0
            for name in names:
                gathered[name] = theirs[start : start + numels[name]]
                start += numels[name]
        return gathered
