"""Which part of the parameters closes its round when: all at once, or layer by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disttrain.parameters import Layout, Unit


@dataclass(frozen=True)
class Fragment:
    """Some parameters, which are exchanged together.

    Args:
        number: from 0.
        units: the parameters.
        ranges: where they lie in the flat vector, neighbours joined.
        lead: local steps by which its rounds close earlier than those of fragment 0.
    """

    number: int
    units: tuple[Unit, ...]
    ranges: tuple[slice, ...]
    lead: int

    def of(self, x: Tensor) -> Tensor:
        """This part of vectors ``[R, d]``: a view if it is in one piece, else a copy."""
        parts = [x[:, each] for each in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def put(self, x: Tensor, part: Tensor) -> None:
        """Write ``part`` there."""
        for each, piece in zip(self.ranges, part.split([each.stop - each.start for each in self.ranges], dim=1), strict=True):
            x[:, each] = piece.to(x.dtype)

    @property
    def layout(self) -> Layout:
        """The units by their places in :meth:`of`."""
        moved, place = [], 0
        for each in self.ranges:
            inside = (unit for unit in self.units if each.start <= unit.offset < each.stop)
            moved += [Unit(unit.name, unit.shape, unit.offset - each.start + place) for unit in inside]
            place += each.stop - each.start
        return Layout(tuple(moved), place)


def layers_of(layout: Layout) -> dict[str, list[Unit]]:
    """Parameters whose names are alike up to the first number (``blocks.3``), or up to the first dot, by that part."""
    layers: dict[str, list[Unit]] = {}
    for unit in layout.units:
        numbered = re.match(r"(?:.*?\.)??\d+(?=\.|$)", unit.name)
        layers.setdefault(numbered[0] if numbered else unit.name.split(".")[0], []).append(unit)
    return layers


def fragments_of(layout: Layout, number: int, period: int) -> list[Fragment]:
    """Deal the layers out in turn, so that every fragment has some from everywhere ("strided", arXiv 2501.18512), and spread the
    fragments' exchanges evenly over a round.

    Raises:
        ValueError: if there are fewer layers, or fewer local steps in a round.
    """
    if number == 1:
        return [Fragment(0, layout.units, (slice(0, layout.d),), 0)]
    named = layers_of(layout)
    if number > len(named):
        raise ValueError(f"strategy.fragments={number} exceeds the model's {len(named)} layers ({', '.join(named)})")
    if number > period:
        raise ValueError(f"strategy.fragments={number} exceeds strategy.period={period}: one is exchanged in a step at most")
    ends = dict(zip(layout.units, [unit.offset for unit in layout.units[1:]] + [layout.d], strict=True))
    layers, fragments = list(named.values()), []
    for index in range(number):
        units = tuple(unit for layer in layers[index::number] for unit in layer)
        ranges = _joined([slice(unit.offset, ends[unit]) for unit in units])
        fragments.append(Fragment(index, units, ranges, index * period // number))
    return fragments


def _joined(ranges: Sequence[slice]) -> tuple[slice, ...]:
    joined: list[slice] = []
    for each in sorted(ranges, key=lambda each: each.start):
        if joined and joined[-1].stop == each.start:
            joined[-1] = slice(joined[-1].start, each.stop)
        else:
            joined.append(each)
    return tuple(joined)
