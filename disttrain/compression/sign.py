"""One bit for every entry: its sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain.compression.base import Bound, CompressorConfig, Contraction, compressors
from disttrain.compression.blockwise import SCALE_BYTES, Blockwise
from disttrain.compression.codec import HEADER_BYTES, pack, packed_bytes, unpack


@dataclass(frozen=True)
class ScaledSign(Blockwise):
    """Every entry becomes plus or minus its block's mean magnitude; the sign of zero is plus.

    "Error Feedback Fixes SignSGD and other Gradient Compression Schemes" (arXiv 1901.09847), equation 4 (the scale is ‖x‖₁/d:
    with ‖x‖₂/√d it would be no contraction), in blocks.

    Payload: header, a float32 scale for each block, one bit for each entry.

    Args:
        block: entries per scale.

    Raises:
        ValueError: for an empty block.
    """

    block: int = 1024

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block must be positive, got {self.block}")

    def payload_bytes(self, d: int) -> int:
        """Header, scales and d bits."""
        return HEADER_BYTES + SCALE_BYTES * self.num_blocks(d) + packed_bytes(d, 1)

    def encode(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Floats ``[..., d]`` to uint8."""
        d = x.shape[-1]
        entries = torch.full((self.num_blocks(d),), float(self.block), device=x.device)
        if d % self.block:
            entries[-1] = d % self.block
        scales = self.blocks_of(x).abs().sum(-1) / entries
        return self.joined(scales, pack(x >= 0, 1))

    def decode(self, payload: Tensor, d: int) -> Tensor:
        """uint8 to float32."""
        scales, rest = self.split(payload, d)
        return self.scaled(unpack(rest, d, 1).float().mul_(2).sub_(1), scales, payload)

    def bound(self, d: int) -> Bound:
        """δ = ‖x‖₁² / (d‖x‖₂²) of a block, at least 1 / block: a single entry that is not zero.

        Gaussian entries keep 2/π, but what error feedback compresses is soon not Gaussian: EControl with η = 2/π diverges.
        """
        return Contraction(1 / min(self.block, max(d, 1)))


@compressors.register
class SignConfig(CompressorConfig):
    """The sign of each entry, and the mean magnitude of each block."""

    name: Literal["sign"] = "sign"
    block: int = Field(1024, ge=1)
    """Entries per scale."""

    def build(self) -> ScaledSign:
        """The compressor itself."""
        return ScaledSign(self.block)
