"""What error feedback remembers of every parameter, in one vector for each kind of state; and a second one for what may come.

Both are needed because a step may be skipped after parts of it were exchanged: all of a step's states are written beside
the old ones, and change places with them when every worker's payloads have turned out to be finite.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from disttrain.parameters import Layout, Unit

Sizes = Mapping[str, int]
"""Entries of each kind of state of one parameter."""


class Memory:
    """States by kind, for all parameters of a layout.

    Args:
        layout: the parameters.
        sizes: entries of each kind of state, by parameter's name.
        rows: how many rows each kind has: one for each worker that lives here, or one for all.
        dtype: of the states.
        device: of the states.

    Attributes:
        now: each kind's states of all parameters, ``[rows, entries]``, in the layout's order.
    """

    def __init__(
        self, layout: Layout, sizes: Mapping[str, Sizes], rows: Mapping[str, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._places: dict[str, dict[str, slice]] = {kind: {} for kind in rows}
        ends = dict.fromkeys(rows, 0)
        for unit in layout.units:
            for kind, entries in sizes[unit.name].items():
                self._places[kind][unit.name] = slice(ends[kind], ends[kind] + entries)
                ends[kind] += entries
        self.now = {kind: torch.zeros(rows[kind], end, dtype=dtype, device=device) for kind, end in ends.items()}
        self._next = {kind: torch.zeros_like(states) for kind, states in self.now.items()}

    def of(self, unit: Unit) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One parameter's states, and those to come: views ``[rows, entries]`` by kind."""
        places = {kind: each[unit.name] for kind, each in self._places.items() if unit.name in each}
        return ({kind: self.now[kind][:, place] for kind, place in places.items()},
                {kind: self._next[kind][:, place] for kind, place in places.items()})  # fmt: skip

    def keep(self, unit: Unit) -> None:
        """What is to come of this parameter is what is now."""
        for old, new in zip(*(each.values() for each in self.of(unit)), strict=True):
            new.copy_(old)

    def advance(self) -> None:
        """What was to come is now."""
        self.now, self._next = self._next, self.now
