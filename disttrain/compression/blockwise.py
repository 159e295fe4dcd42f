"""What compressors with a scale for each block of entries have in common."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from disttrain.compression.base import Compressor
from disttrain.compression.codec import HEADER_BYTES, from_bytes, header, nan_unless_finite, to_bytes

SCALE_BYTES = 4


class Blockwise(Compressor):
    """Compressors with a scale for each ``block`` of entries; the last block may be shorter."""

    block: int

    def num_blocks(self, d: int) -> int:
        """Of d entries, a last shorter one included."""
        return -(-d // self.block)

    def blocks_of(self, x: Tensor) -> Tensor:
        """``[..., d]`` to float32 ``[..., blocks, block]``, zeros after the end."""
        padded = F.pad(x.float(), (0, -x.shape[-1] % self.block))
        return padded.view(*x.shape[:-1], -1, self.block)

    def split(self, payload: Tensor, d: int) -> tuple[Tensor, Tensor]:
        """Scales, float32 ``[..., blocks]``, and what follows them."""
        scale_bytes = SCALE_BYTES * self.num_blocks(d)
        scales = from_bytes(payload[..., HEADER_BYTES : HEADER_BYTES + scale_bytes], torch.float32)
        return scales, payload[..., HEADER_BYTES + scale_bytes :]

    def joined(self, scales: Tensor, rest: Tensor) -> Tensor:
        """A payload; scales, being of norms, are finite only where all entries are."""
        return torch.cat([header(scales.isfinite().all(-1)), to_bytes(scales), rest], dim=-1)

    def scaled(self, integers: Tensor, scales: Tensor, payload: Tensor) -> Tensor:
        """Integers ``[..., d]`` times their block's scale."""
        d = integers.shape[-1]
        each = F.pad(integers.float(), (0, -d % self.block)).unflatten(-1, (-1, self.block)).mul_(scales[..., None])
        return nan_unless_finite(each.flatten(-2)[..., :d], payload)
