"""Long vectors a piece after another, so that what comes between input and output stays in a CPU's caches.

A pass over a vector that does not fit costs about as much as a memory copy, and a fresh temporary of its size several times
that, for every page of it is touched for the first time. Pieces change no bits: they end where blocks do, and entries of
different blocks have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from disttrain.compression.base import Compressor

PIECES = {"cpu": 2**20}
"""Entries of a piece, of all rows together: four megabytes in float32."""
OTHER_PIECES = 2**25
"""Elsewhere, where only the temporaries' size matters."""


def pieces(x: Tensor, d: int, block: int = 1) -> Iterator[slice]:
    """Cut ``d`` entries for each row of ``x [..., any]`` between blocks, and between whole bytes of packed integers."""
    unit, entries = 8 * block, PIECES.get(x.device.type, OTHER_PIECES) // max(1, prod(x.shape[:-1]))
    step = max(1, entries // unit) * unit
    for start in range(0, max(1, d), step):  # of nothing, one empty piece
        yield slice(start, min(d, start + step))


class Piecewise(Compressor):
    """Compressors that can decode any piece of a vector by itself."""

    block: int = 1

    def decode_piece(self, payload: Tensor, d: int, piece: slice) -> Tensor:
        """Entries ``[..., piece]`` of what :meth:`decode` makes of a payload."""
        raise NotImplementedError(f"{type(self).__name__} must define decode_piece()")

    def decode(self, payload: Tensor, d: int) -> Tensor:
        """uint8 to floats ``[..., d]``."""
        out = torch.empty(*payload.shape[:-1], d, dtype=self.decoded_dtype, device=payload.device)
        for piece in pieces(payload, d, self.block):
            out[..., piece] = self.decode_piece(payload, d, piece)
        return out

    def add_decoded_(self, out: Tensor, payload: Tensor, scale: float = 1.0) -> None:
        """``out [..., d] += scale · decode(payload)``."""
        for piece in pieces(payload, out.shape[-1], self.block):
            out[..., piece].add_(self.decode_piece(payload, out.shape[-1], piece).to(out.dtype), alpha=scale)

    def decoded_sum(self, payloads: Tensor, d: int, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """The weighted sum over senders ``[..., n, b]`` to ``[..., d]``, added in their order."""
        total = torch.empty(*payloads.shape[:-2], d, dtype=dtype, device=payloads.device)
        for piece in pieces(payloads, d, self.block):
            some = total[..., piece].zero_()
            for row in (self.decode_piece(payloads, d, piece).to(dtype) * weights[:, None].to(dtype)).unbind(-2):
                some += row
        return total

    @property
    def decoded_dtype(self) -> torch.dtype:
        """Of what is decoded."""
        return torch.float32
