"""Tensors of which each member of a group has a part: torch's ``DTensor``.

Importing that class takes half a second, which only those who make one should wait for: here it is known by its name.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether each member of a group has a part of it."""
    return type(tensor).__name__ == "DTensor"


def shard_of(tensor: Tensor) -> Tensor:
    """This worker's part of a sharded tensor, sharing its memory; of any other, all."""
    own: Any = tensor.detach()
    part: Tensor = own.to_local() if is_sharded(own) else own
    return part


def gathered(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, for which all members must ask; any other as it is."""
    sharded: Any = tensor
    full: Tensor = sharded.full_tensor() if is_sharded(tensor) else tensor
    return full


def as_shard(part: Tensor, like: Tensor) -> Tensor:
    """This worker's part of a tensor that is sharded as ``like``, as such a tensor."""
    sharded: Any = like
    shape, stride = like.shape, like.stride()
    made: Tensor = type(sharded).from_local(part, sharded.device_mesh, sharded.placements, shape=shape, stride=stride)
    return made
