"""Rotary position embedding: pair i of a vector at position t is turned by the angle t · base^(−2i/width).

RoFormer (arXiv 2104.09864), section 3.2.2. A product of two turned vectors depends on their positions' difference only.
Pairs are interleaved, entries (2i, 2i + 1), as in the paper; Llama's half-split pairs (i, i + width/2) are the same
after a permutation of the entries.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(time: int, width: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all angles, each float32 ``[time, width / 2]``.

    Computed in every forward pass, which costs microseconds: a buffer that is not in the state dict holds garbage after
    ``to_empty`` and loses its precision in ``module.bfloat16()``.
    """
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angles = torch.outer(torch.arange(time, dtype=torch.float32, device=device), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn every interleaved pair of ``x``, ``[..., time, width]``; computed in float32, returned in x's dtype."""
    cosine, sine = table
    even, odd = x.view(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    return turned.flatten(-2).to(x.dtype)
