"""How deltas are averaged: as they are, by all-reduce, or compressed with error feedback."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from disttrain import random
from disttrain.compression.mean import CompressedMean
from disttrain.parameters import Layout
from disttrain.strategies.local_updates.fragments import Fragment
from disttrain.worlds.groups import Groups
from disttrain.worlds.traffic import all_reduce_wire_bytes
from disttrain.worlds.world import World


class DeltaMean:
    """The mean of fragments' deltas.

    Args:
        compression: not begun; None: deltas are sent as they are.
        fragments: what is exchanged together.
        world: whose workers.
        groups: of workers whose deltas are equal, which are sent once; None: there are none.
        like: ``[..., d]``, of the deltas' dtype and device.
        seed: of what a compressor draws.
    """

    def __init__(
        self,
        compression: CompressedMean | None,
        fragments: Sequence[Fragment],
        world: World,
        groups: Groups | None,
        like: Tensor,
        seed: int,
    ) -> None:
        self._world, self._groups, self._like = world, groups, like
        self._layouts: list[Layout] = [fragment.layout for fragment in fragments]
        self._means: list[CompressedMean] = []
        for number, layout in enumerate(self._layouts if compression is not None else ()):
            mean = copy.copy(compression)
            assert mean is not None
            mean.begin(layout, world, like.dtype, like.device, random.key(seed, random.Stream.COMPRESSION, number))
            self._means.append(mean)

    def average(self, lane: World, fragment: Fragment, delta: Tensor) -> tuple[Tensor, Tensor]:
        """On a lane: ``[L, d_f]`` to the mean ``[1, d_f]``, fresh, and whether all workers' deltas were finite."""
        if not self._means:
            mean = lane.mean(delta) if self._groups is None else self._groups.mean(delta)
            return mean, mean.isfinite().all()
        units = self._layouts[fragment.number].units
        means, outcomes = self._means[fragment.number].compress(lane, units, [unit.of(delta).flatten(1) for unit in units])
        whole = torch.zeros_like(delta[:1])
        for unit, part in zip(units, means, strict=True):
            whole[:, unit.offset : unit.offset + unit.numel] = part
        return whole, torch.stack([outcome.finite for outcome in outcomes]).all()

    def landed(self, fragment: Fragment) -> None:
        """The mean has arrived, and counts: what it left out is remembered from now on."""
        if self._means:
            self._means[fragment.number].advance()

    @property
    def shared(self) -> dict[str, Tensor]:
        """Of the error feedback, by fragment."""
        return {f"{name}.{number}": state for number, mean in enumerate(self._means) for name, state in mean.shared.items()}

    @property
    def local(self) -> dict[str, Tensor]:
        """Of the error feedback, by fragment."""
        return {f"{name}.{number}": state for number, mean in enumerate(self._means) for name, state in mean.local.items()}

    @property
    def temporary_copies(self) -> float:
        """The deltas, and what a compressor needs beside them."""
        return 1.0 + max((mean.temporary_copies for mean in self._means), default=0.0)

    @property
    def wire_bytes(self) -> int:
        """What a worker sends in a round."""
        if self._groups is not None:
            return sum(self._groups.wire_bytes(each.d, self._like.element_size()) for each in self._layouts)
        if not self._means:
            return sum(all_reduce_wire_bytes(each.d * self._like.element_size(), self._world.size) for each in self._layouts)
        return sum(mean.wire_bytes for mean in self._means)

    @property
    def description(self) -> str:
        """What becomes of a delta."""
        return f"{self._means[0].description}, " if self._means else ""
