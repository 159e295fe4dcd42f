"""Fewer bits for every entry: rounded to another float, to a grid of integers, or to one of two neighbours by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain import random
from disttrain.compression.base import Bound, Compressor, CompressorConfig, Contraction, Variance, compressors
from disttrain.compression.blockwise import Blockwise
from disttrain.compression.codec import HEADER_BYTES, all_finite, from_bytes, header, nan_unless_finite, pack, to_bytes, unpack
from disttrain.compression.piecewise import Piecewise, pieces

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
INT8_MAX = 127


@dataclass(frozen=True)
class Cast(Piecewise):
    """Every entry rounded to another float: ``bf16`` (8 bits of precision, float32's range) or ``fp16`` (11, up to 65,504).

    Payload: header, then d floats. ``fp32`` and ``fp64`` are for values that others have chosen, and for tests.

    Raises:
        ValueError: if there is no such float.
    """

    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    @property
    def _torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def payload_bytes(self, d: int) -> int:
        """Header and d floats."""
        return HEADER_BYTES + d * self._torch_dtype.itemsize

    def encode(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Floats ``[..., d]`` to uint8."""
        d, size = x.shape[-1], self._torch_dtype.itemsize
        payload = torch.empty(*x.shape[:-1], self.payload_bytes(d), dtype=torch.uint8, device=x.device)
        finite = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        for piece in pieces(x, d):
            rounded = x[..., piece].to(self._torch_dtype)
            finite &= all_finite(rounded)
            payload[..., HEADER_BYTES + size * piece.start : HEADER_BYTES + size * piece.stop] = to_bytes(rounded)
        payload[..., :HEADER_BYTES] = header(finite)
        return payload

    def decode(self, payload: Tensor, d: int) -> Tensor:
        """uint8 to floats ``[..., d]``, in one piece, which saves a copy."""
        return self.decode_piece(payload, d, slice(0, d))

    def decode_piece(self, payload: Tensor, d: int, piece: slice) -> Tensor:
        """uint8 to float32 (of fp64: float64)."""
        size = self._torch_dtype.itemsize
        part = payload[..., HEADER_BYTES + size * piece.start : HEADER_BYTES + size * piece.stop]
        return nan_unless_finite(from_bytes(part, self._torch_dtype).to(self.decoded_dtype), payload)

    @property
    def decoded_dtype(self) -> torch.dtype:
        """float32 (of fp64: float64)."""
        return torch.promote_types(self._torch_dtype, torch.float32)

    def bound(self, d: int) -> Bound:
        """Relative errors are at most 2⁻⁸ (bf16) and 2⁻¹¹ (fp16, within its range); float32 counts as exact."""
        relative_error = torch.finfo(self._torch_dtype).eps / 2 if self._torch_dtype.itemsize < 4 else 0.0
        return Contraction(1 - relative_error**2)


@dataclass(frozen=True)
class Identity(Cast):
    """Everything as it is, in float32: the degenerate case, which must equal plain data parallel training."""

    dtype: Literal["fp32"] = "fp32"
    is_linear: ClassVar[bool] = True


@dataclass(frozen=True)
class Int8(Blockwise):
    """Every entry rounded to the nearest of 255 multiples of its block's largest magnitude / 127; deterministic.

    Payload: header, a float32 scale for each block, one byte for each entry.

    Args:
        block: entries per scale.

    Raises:
        ValueError: unless 1 <= block <= 4096, up to which a block keeps 93 % of its energy in the worst case.
    """

    block: int = 256
    bits: ClassVar[int] = 8  # type: ignore[misc]

    def __post_init__(self) -> None:
        if not 1 <= self.block <= 4096:
            raise ValueError(f"block must be from 1 to 4096, got {self.block}")

    def quantize(self, x: Tensor, keys: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
        """Largest magnitudes / 127, and a byte for each entry."""
        blocks = self.blocks_of(x, start)
        scales = (blocks.abs().amax(-1) / INT8_MAX).clamp_min(torch.finfo(torch.float32).tiny)  # else a denormal, or 0 / 0
        integers = (blocks / scales[..., None]).round_().clamp_(-INT8_MAX, INT8_MAX)
        return scales, integers.nan_to_num_(0.0).to(torch.int8).flatten(-2)[..., : x.shape[-1]].view(torch.uint8)

    def expand(self, packed: Tensor, m: int) -> Tensor:
        """The bytes."""
        return packed.view(torch.int8).float()

    def bound(self, d: int) -> Bound:
        """An entry is off by half a step, and the block has at least the energy of its largest: 1 − δ = block / (4 · 127²)."""
        return Contraction(1 - min(self.block, max(d, 1)) / (4 * INT8_MAX**2))


@dataclass(frozen=True)
class QSGD(Blockwise):
    """Every entry rounded up or down by chance to a multiple of its block's Euclidean norm / s; unbiased.

    "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding" (arXiv 1610.02132), section 3.1, with s = 1, 7 or
    127 levels in 2, 4 or 8 bits with the sign, and without the entropy code.

    Args:
        bits: of an entry.
        block: entries per norm.

    Raises:
        ValueError: for other bits, or an empty block.
    """

    bits: int = 4
    block: int = 256
    is_random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8) or self.block < 1:
            raise ValueError(f"bits must be 2, 4 or 8 and block positive, got bits={self.bits}, block={self.block}")

    @property
    def levels(self) -> int:  # type: ignore[override]
        """s, the number of levels above zero."""
        return int(2 ** (self.bits - 1) - 1)

    def quantize(self, x: Tensor, keys: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
        """Norms, and ``bits`` for each entry; draws a number for each of them and each of the ``keys [...]``."""
        blocks, m = self.blocks_of(x, start), x.shape[-1]
        tiny = torch.finfo(torch.float32).tiny
        largest = blocks.abs().amax(-1, keepdim=True).clamp_min(tiny)
        norms = largest * torch.linalg.vector_norm(blocks / largest, dim=-1, keepdim=True)  # squares of 1e30 overflow
        draws = self.blocks_of(random.uniform(needed(keys, self), m, start), start)
        steps = (blocks.abs() / norms.clamp_min(tiny)).mul_(self.levels).add_(draws).floor_().clamp_(max=self.levels)
        integers = steps.copysign(blocks).nan_to_num_(0.0).flatten(-2)[..., :m] + (self.levels + 1)
        return norms[..., 0], pack(integers.to(torch.uint8), self.bits)

    def expand(self, packed: Tensor, m: int) -> Tensor:
        """Levels, with their sign."""
        return unpack(packed, m, self.bits).float().sub_(self.levels + 1)

    def bound(self, d: int) -> Bound:
        """ω = min(c / 4s², √c / s) in blocks of c entries: a Bernoulli draw has a variance of at most 1/4, and of its mean."""
        entries, s = min(self.block, max(d, 1)), self.levels
        return Variance(min(entries / (4 * s * s), math.sqrt(entries) / s))


def needed(keys: Tensor | None, compressor: Compressor) -> Tensor:
    """The keys of a compressor that draws.

    Raises:
        ValueError: if there are none.
    """
    if keys is None:
        raise ValueError(f"{type(compressor).__name__} draws: give it keys, int64 and one for each vector")
    return keys


@compressors.register
class IdentityConfig(CompressorConfig):
    """Nothing is compressed."""

    name: Literal["identity"] = "identity"

    def build(self) -> Identity:
        """The compressor itself."""
        return Identity()


@compressors.register
class CastConfig(CompressorConfig):
    """Rounded to 16 bits."""

    name: Literal["cast"] = "cast"
    dtype: Literal["bf16", "fp16"] = "bf16"
    """bf16 has float32's range, fp16 three bits more precision and overflows beyond 65,504 (the step is skipped)."""

    def build(self) -> Cast:
        """The compressor itself."""
        return Cast(self.dtype)


@compressors.register
class Int8Config(CompressorConfig):
    """A byte for each entry, and a scale for each block."""

    name: Literal["int8"] = "int8"
    block: int = Field(256, ge=1, le=4096)
    """Entries per scale."""

    def build(self) -> Int8:
        """The compressor itself."""
        return Int8(self.block)


@compressors.register
class QSGDConfig(CompressorConfig):
    """Rounded up or down by chance, unbiased; goes without error feedback."""

    name: Literal["qsgd"] = "qsgd"
    bits: Literal[2, 4, 8] = 4
    """Of an entry."""
    block: int = Field(256, ge=1)
    """Entries per norm."""

    def build(self) -> QSGD:
        """The compressor itself."""
        return QSGD(self.bits, self.block)
