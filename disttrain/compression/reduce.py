"""Reducers: from every worker's vector to the mean of all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from disttrain.worlds.world import World


@dataclass(frozen=True)
class Dense:
    """The plain mean of all entries, sent in ``dtype`` (None: as they are).

    Elementwise, so the result does not depend on how the vector is cut into messages.
    """

    dtype: torch.dtype | None = None

    def reduce(self, world: World, x: Tensor) -> Tensor:
        """``[L, d]`` to ``[1, d]``, in ``x``'s dtype."""
        return world.mean(x.to(self.dtype or x.dtype)).to(x.dtype)
