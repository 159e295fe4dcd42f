"""The bytes of payloads: headers, typed parts, and integers of fewer than eight bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HEADER_BYTES = 1
FINITE, USED = 1, 2
"""Bits of a header. FINITE: all of the input was. USED: set by whoever sends the payload, see `reduce.py`."""


def header(finite: Tensor) -> Tensor:
    """Booleans ``[...]`` to headers, uint8 ``[..., 1]``."""
    return finite.to(torch.uint8)[..., None]


def has_flag(payload: Tensor, flag: int) -> Tensor:
    """Whether the headers of payloads ``[..., b]`` have a flag: booleans ``[...]``."""
    return (payload[..., 0] & flag) != 0


def set_flag(payload: Tensor, flag: int, value: Tensor) -> None:
    """Set a flag in the headers of payloads ``[..., b]`` where ``value [...]`` is true; it must not be set before."""
    payload[..., 0] |= value.to(torch.uint8) * flag


def all_finite(x: Tensor) -> Tensor:
    """Whether all entries of ``[..., d]`` are: booleans ``[...]``, an order of magnitude faster than ``isfinite().all(-1)``."""
    return (x * 0).sum(-1) == 0  # of what is not finite, NaN


def nan_unless_finite(values: Tensor, payload: Tensor) -> Tensor:
    """``values [..., d]``, in place all NaN where the payload's header says that the input was not finite."""
    factor = torch.where(has_flag(payload, FINITE), 1.0, torch.nan)[..., None]
    return values.mul_(factor.to(values.dtype))  # changes no bits of others, and is ten times as fast as masked_fill_


def to_bytes(x: Tensor) -> Tensor:
    """``[..., n]`` of any dtype to uint8 ``[..., n · itemsize]``."""
    return x.contiguous().view(torch.uint8)


def from_bytes(part: Tensor, dtype: torch.dtype) -> Tensor:
    """The reverse, of any slice of payloads."""
    if part.shape[-1] == 0:  # its strides are too short to be viewed
        return torch.empty(part.shape, dtype=dtype, device=part.device)
    # A slice with one row counts as contiguous whatever its offset, yet cannot be viewed as a wider dtype: copy it.
    return part.clone(memory_format=torch.contiguous_format).view(dtype)


def packed_bytes(n: int, bits: int) -> int:
    """Bytes of n integers of 1, 2, 4, 8, 12 or 16 bits."""
    return -(-n * bits // 8)


def pack(x: Tensor, bits: int) -> Tensor:
    """Integers ``[..., n]`` in [0, 2^bits) to uint8 ``[..., packed_bytes(n, bits)]``, the first in the lowest bits."""
    if bits == 16:  # torch's own uint16 cannot do much
        return torch.stack([x & 255, x >> 8], dim=-1).to(torch.uint8).flatten(-2)
    if bits == 12:
        return _pack_twelve(x)
    x = x.to(torch.uint8)
    if bits == 8:
        return x
    if bits == 1 and x.device.type == "cpu":  # numpy's is twenty times as fast
        return torch.from_numpy(np.packbits(x.numpy(), axis=-1, bitorder="little"))
    parts = torch.nn.functional.pad(x, (0, -x.shape[-1] % (8 // bits))).unflatten(-1, (-1, 8 // bits))
    packed: Tensor = parts[..., 0].clone()
    for place in range(1, 8 // bits):
        packed |= parts[..., place] << (bits * place)
    return packed


def unpack(packed: Tensor, n: int, bits: int) -> Tensor:
    """uint8 ``[..., packed_bytes(n, bits)]`` back to integers ``[..., n]``: uint8, of more than 8 bits int64."""
    if bits == 16:
        low, high = packed.long().view(*packed.shape[:-1], -1, 2).unbind(-1)
        return low | (high << 8)
    if bits == 12:
        return _unpack_twelve(packed, n)
    if bits == 8:
        return packed
    if bits == 1 and packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=n, bitorder="little"))
    parts = [(packed >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
    return torch.stack(parts, dim=-1).flatten(-2)[..., :n]


def _pack_twelve(x: Tensor) -> Tensor:
    n = x.shape[-1]
    even, odd = torch.nn.functional.pad(x, (0, n % 2)).unflatten(-1, (-1, 2)).unbind(-1)
    three = torch.stack([even & 255, (even >> 8) | ((odd & 15) << 4), odd >> 4], dim=-1).to(torch.uint8)
    return three.flatten(-2)[..., : packed_bytes(n, 12)]


def _unpack_twelve(packed: Tensor, n: int) -> Tensor:
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % 3))
    low, middle, high = padded.long().unflatten(-1, (-1, 3)).unbind(-1)
    return torch.stack([low | ((middle & 15) << 8), (middle >> 4) | (high << 4)], dim=-1).flatten(-2)[..., :n]
