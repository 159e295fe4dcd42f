"""Reducers: from every worker's vector to the mean of all.

The two here are elementwise: an entry of the mean depends on that entry of the vectors only, so results do not depend on how
vectors are cut into messages, and a driver may hand over whole buckets. What is compressed parameter by parameter, and the
``reducer`` of strategy ``compressed``, is in `exchange.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from disttrain.worlds.rank_order import rank_ordered_mean
from disttrain.worlds.world import World


@dataclass(frozen=True)
class Dense:
    """The plain mean in the vector's own dtype, by the backend's all-reduce."""

    temporary_copies: ClassVar[float] = 0.0
    """Copies of all vectors that are in memory at once, beside the vectors."""

    def reduce(self, world: World, x: Tensor) -> Tensor:
        """``[L, d]`` to ``[1, d]``."""
        return world.mean(x)


@dataclass(frozen=True)
class TwoPhaseCast:
    """The mean of vectors rounded to 16 bits; every worker averages one part in fp32, and rounds it once more for the others.

    It sends what a ring all-reduce in 16 bits would. But an all-reduce rounds after each of its n - 1 additions, in an order
    that only the backend knows; here two roundings are all, and the order is that of the workers, whatever their number.
    """

    dtype: torch.dtype
    temporary_copies: ClassVar[float] = 2.0
    """Rounded twice (before and after the transpose: half a copy each), and once more in fp32."""

    def reduce(self, world: World, x: Tensor) -> Tensor:
        """``[L, d]`` to ``[1, d]``, in ``x``'s dtype."""
        size, d = world.size, x.shape[-1]
        rounded = F.pad(x.to(self.dtype), (0, -d % size))
        mine = world.transpose(rounded.view(len(x), size, -1))  # [L, size, part]
        mean = rank_ordered_mean(mine.transpose(0, 1).float())  # [L, part]
        return world.gather(mean.to(self.dtype)).flatten(1)[:, :d].to(x.dtype)


Reducer: TypeAlias = Dense | TwoPhaseCast
