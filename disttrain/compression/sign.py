"""One bit for every entry: its sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain.compression.base import Bound, CompressorConfig, Contraction, compressors
from disttrain.compression.blockwise import Blockwise
from disttrain.compression.codec import pack, unpack


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
    bits: ClassVar[int] = 1  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block must be positive, got {self.block}")

    def quantize(self, x: Tensor, keys: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
        """Mean magnitudes, and one bit for each entry."""
        sums = self.blocks_of(x, start).abs().sum(-1)
        entries = torch.full(sums.shape[-1:], float(self.block), device=x.device)
        if tail := x.shape[-1] % self.block:
            entries[-1] = tail
        return sums / entries, pack(x >= 0, 1)

    def expand(self, packed: Tensor, m: int) -> Tensor:
        """Plus or minus one."""
        return unpack(packed, m, 1).float().mul_(2).sub_(1)

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
