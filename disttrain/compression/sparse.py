"""A few entries for all: the largest of a vector, the largest of each block, or some drawn by chance.

What is kept is itself a vector, which another compressor encodes: rounded to bfloat16 unless told otherwise. So a payload is

    ========  =====================================================
    values    the other compressor's payload of the kept entries, which begins with the header
    places    where they belong
    ========  =====================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from disttrain import random
from disttrain.compression.base import Bound, Compressor, CompressorConfig, Contraction, Variance, compressors
from disttrain.compression.codec import FINITE, all_finite, from_bytes, has_flag, pack, packed_bytes, to_bytes, unpack
from disttrain.compression.quantize import QSGD, Cast, Int8, needed

LARGEST_BLOCK = 65536
KEY_BYTES = 8
DRAWN_AT_ONCE = 2**16
"""Numbers, so that they stay in a CPU's caches."""
BF16, FP32 = Cast("bf16"), Cast("fp32")


class Sparsifier(Compressor):
    """Keeps ``kept(d)`` of d entries."""

    values: Compressor
    is_projection: ClassVar[bool] = True
    """Whether entries are kept as they are, so that what is lost is orthogonal to what is kept."""

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether the values' compressor draws."""
        return self.values.is_random

    def kept(self, d: int) -> int:
        """How many entries are kept of d."""
        raise NotImplementedError(f"{type(self).__name__} must define kept()")

    def places_bytes(self, d: int) -> int:
        """Bytes that say where they belong."""
        raise NotImplementedError(f"{type(self).__name__} must define places_bytes()")

    def select(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """From ``[..., d]`` the kept entries ``[..., kept(d)]``, and their places as bytes ``[..., places_bytes(d)]``."""
        raise NotImplementedError(f"{type(self).__name__} must define select()")

    def places(self, part: Tensor, d: int) -> Tensor:
        """The places, int64 ``[..., kept(d)]``, all different."""
        raise NotImplementedError(f"{type(self).__name__} must define places()")

    def kept_bound(self, d: int) -> Bound:
        """The bound if values were exact."""
        raise NotImplementedError(f"{type(self).__name__} must define kept_bound()")

    def payload_bytes(self, d: int) -> int:
        """The values' payload, and the places."""
        return self.values.payload_bytes(self.kept(d)) + self.places_bytes(d)

    def encode(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Floats ``[..., d]`` to uint8. Magnitudes rank NaN first, so that what is not finite is always among the kept."""
        kept, places = self.select(x, keys)
        # Other draws than those that chose the places: what was chosen by a large number would be rounded by it, too.
        values_keys = None if keys is None else random.key(0, random.Stream.COMPRESSION, keys)
        return torch.cat([self.values.encode(kept, values_keys), places], dim=-1)

    def decode(self, payload: Tensor, d: int) -> Tensor:
        """uint8 to floats, zero where nothing was kept."""
        values, places = self._unpacked(payload, d)
        dense = torch.zeros(*payload.shape[:-1], d, dtype=values.dtype, device=payload.device)
        dense.scatter_(-1, places, values)
        finite = has_flag(payload, FINITE)
        return dense if finite.all() else dense.masked_fill_(~finite[..., None], torch.nan)

    def add_decoded_(self, out: Tensor, payload: Tensor, scale: float = 1.0) -> None:
        """``out [..., d] += scale · decode(payload)``, touching only what was kept."""
        values, places = self._unpacked(payload, out.shape[-1])
        out.scatter_add_(-1, places, values.to(out.dtype).mul_(scale))

    def decoded_sum(self, payloads: Tensor, d: int, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """The weighted sum over senders ``[..., n, b]`` to ``[..., d]``, added in their order."""
        total = torch.zeros(*payloads.shape[:-2], d, dtype=dtype, device=payloads.device)
        values, places = self._unpacked(payloads, d)
        values = values.to(dtype).mul_(weights[:, None].to(dtype))
        if payloads.device.type == "cpu":  # one thread adds a row's entries in their order
            return total.scatter_add_(-1, places.flatten(-2), values.flatten(-2))
        for sender in range(payloads.shape[-2]):  # a GPU adds in any order, but no two entries of one sender meet
            total.scatter_add_(-1, places[..., sender, :], values[..., sender, :])
        return total

    def bound(self, d: int) -> Bound:
        """What is lost with the entries, and what their own compressor loses."""
        kept, values = self.kept_bound(d), self.values.bound(self.kept(d))
        if isinstance(kept, Variance):  # values are exact or unbiased, see RandK
            omega = values.omega if isinstance(values, Variance) else 0.0
            return Variance((1 + kept.omega) * (1 + omega) - 1)
        if isinstance(values, Variance):
            return Contraction(max(0.0, kept.delta * (1 - values.omega)))
        return Contraction(kept.delta * values.delta)

    def _unpacked(self, payload: Tensor, d: int) -> tuple[Tensor, Tensor]:
        num_bytes = self.values.payload_bytes(self.kept(d))
        return self.values.decode(payload[..., :num_bytes], self.kept(d)), self.places(payload[..., num_bytes:], d)


@dataclass(frozen=True)
class TopK(Sparsifier):
    """Keep the share ``ratio`` of largest magnitude, at least one; deterministic up to ties. A place is an int32.

    Raises:
        ValueError: unless 0 < ratio <= 1.
    """

    ratio: float
    values: Compressor = BF16

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    @property
    def nominal_delta(self) -> float:
        """The ratio: of whatever vector, the largest entries hold at least that share."""
        return self.ratio

    def kept(self, d: int) -> int:
        """ratio · d to the nearest number, at least one."""
        return min(d, max(1, round(self.ratio * d)))

    def places_bytes(self, d: int) -> int:
        """Four for each."""
        return 4 * self.kept(d)

    def select(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """The largest of all, and where they are."""
        places = x.abs().topk(self.kept(x.shape[-1]), dim=-1, sorted=False).indices
        return x.gather(-1, places), to_bytes(places.int())

    def places(self, part: Tensor, d: int) -> Tensor:
        """As sent."""
        return from_bytes(part, torch.int32).long()

    def kept_bound(self, d: int) -> Bound:
        """δ = k / d, tight when all entries have one magnitude."""
        return Contraction(self.kept(d) / d if d else 1.0)


@dataclass(frozen=True)
class BlockTopK(Sparsifier):
    """Keep the ``k`` largest of every ``block`` entries (of a last, shorter block as many); deterministic up to ties.

    Selecting over the whole vector is several times slower on a CPU and needs 32-bit places. Selecting inside blocks has the
    same worst-case contraction, for every block keeps at least the share k / block of its own energy, and a place takes 8 bits
    (12 from blocks of more than 256, 16 of more than 4,096).

    Raises:
        ValueError: unless 1 <= k <= block <= 65536.
    """

    k: int
    block: int = 256
    values: Compressor = BF16

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.block <= LARGEST_BLOCK:
            raise ValueError(f"need 1 <= k <= block <= {LARGEST_BLOCK}, got k={self.k}, block={self.block}")

    @property
    def nominal_delta(self) -> float:
        """k / block."""
        return self.k / self.block

    @property
    def _place_bits(self) -> int:
        return 8 if self.block <= 256 else 12 if self.block <= 4096 else 16

    def kept(self, d: int) -> int:
        """k of each block."""
        return d // self.block * self.k + min(self.k, d % self.block)

    def places_bytes(self, d: int) -> int:
        """One, one and a half or two for each."""
        return packed_bytes(self.kept(d), self._place_bits)

    def select(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """The largest of each block, and where in it they are."""
        d, tail = x.shape[-1], x.shape[-1] % self.block
        blocks = x[..., : d - tail].unflatten(-1, (-1, self.block))
        values, places = (part.flatten(-2) for part in _largest(blocks, self.k))
        if tail:
            more_values, more_places = _largest(x[..., d - tail :], min(self.k, tail))
            values, places = torch.cat([values, more_values], dim=-1), torch.cat([places, more_places], dim=-1)
        return values, pack(places, self._place_bits)

    def places(self, part: Tensor, d: int) -> Tensor:
        """Place in the block, plus where the block begins."""
        places = unpack(part, self.kept(d), self._place_bits).long()
        starts = torch.arange(0, d, self.block, device=part.device).repeat_interleave(self.k)[: self.kept(d)]
        return places.add_(starts)

    def kept_bound(self, d: int) -> Bound:
        """δ = k / block, tight when all entries of a block have one magnitude."""
        return Contraction(min(1.0, self.k / max(1, min(self.block, d))))


@dataclass(frozen=True)
class RandK(Sparsifier):
    """Keep the share ``ratio`` drawn by chance, at least one. What is sent is the draw's key, eight bytes, not the places.

    Args:
        ratio: how much.
        unbiased: multiply what is kept by d / k: unbiased, but no contraction, so not for error feedback.
        values: of the kept entries; exact (fp32) or unbiased (QSGD) if ``unbiased``.

    Raises:
        ValueError: unless 0 < ratio <= 1, or for values that would make an unbiased draw biased.
    """

    ratio: float
    unbiased: bool = False
    values: Compressor = FP32
    is_random: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)
        exact = self.values.bound(1) in (Contraction(1.0), Variance(0.0)) or isinstance(self.values.bound(1), Variance)
        if self.unbiased and not exact:
            raise ValueError(
                f"unbiased needs values that are exact or unbiased, such as Cast('fp32') or QSGD(), got {self.values}"
            )

    def kept(self, d: int) -> int:
        """ratio · d to the nearest number, at least one."""
        return min(d, max(1, round(self.ratio * d)))

    def places_bytes(self, d: int) -> int:
        """Those of the key."""
        return KEY_BYTES

    def select(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """The entries at drawn places, and the key."""
        keys = needed(keys, self)
        kept = x.gather(-1, self._draw(keys, x.shape[-1]))
        bad = ~all_finite(x)[..., None]  # chance may pass over what is not finite; the header must not
        if self.unbiased:  # in float16 the product might overflow, and be rounded
            kept = kept.to(torch.promote_types(x.dtype, torch.float32)) * (x.shape[-1] / max(1, kept.shape[-1]))
        return kept.masked_fill(bad, torch.nan), to_bytes(keys[..., None])

    def places(self, part: Tensor, d: int) -> Tensor:
        """Drawn again."""
        return self._draw(from_bytes(part, torch.int64)[..., 0], d)

    def kept_bound(self, d: int) -> Bound:
        """ω = d/k − 1, or in expectation δ = k / d."""
        if d == 0:
            return Contraction(1.0)
        return Variance(d / self.kept(d) - 1) if self.unbiased else Contraction(self.kept(d) / d)

    def _draw(self, keys: Tensor, d: int) -> Tensor:
        # Hashes of 63 bits: equal ones, which would make the draw depend on topk's ties, do not happen.
        if d <= DRAWN_AT_ONCE or not keys.numel():
            return random.bits(keys, d).topk(self.kept(d), dim=-1, sorted=False).indices.sort(-1).values
        if keys.dim():
            return torch.stack([self._draw(key, d) for key in keys])
        draws, places = _likely_draws(keys, d, self.kept(d))
        return places[draws.topk(self.kept(d), sorted=False).indices].sort().values


def _likely_draws(key: Tensor, d: int, k: int) -> tuple[Tensor, Tensor]:
    """Of d draws all that are large, at least k of them, and their places: a selection from few instead of from d."""
    expected = min(d, k + 8 * math.sqrt(k) + 16)  # fewer than k are as rare as eight standard deviations
    while True:
        least = 2**63 - int(2**63 * (expected / d))
        draws, places = [], []
        for start in range(0, d, DRAWN_AT_ONCE):
            some = random.bits(key, min(DRAWN_AT_ONCE, d - start), start)
            large = (some >= least).nonzero()[:, 0]
            draws.append(some[large])
            places.append(large + start)
        if sum(len(each) for each in draws) >= k:
            return torch.cat(draws), torch.cat(places)
        expected = d


def Compose(sparsifier: Sparsifier, quantizer: Compressor) -> Sparsifier:  # noqa: N802 - a compressor made of two
    """Sparsify, then quantize what is kept."""
    return replace(sparsifier, values=quantizer)  # type: ignore[type-var]


def _largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k entries of largest magnitude of ``[..., c]`` and their places, each ``[..., k]``."""
    magnitudes = x.abs()
    if k == 1:  # a maximum is faster; NaN is one, too
        places = magnitudes.max(dim=-1, keepdim=True).indices if x.numel() else x.new_empty(*x.shape[:-1], 1, dtype=torch.int64)
    else:
        places = magnitudes.topk(k, dim=-1, sorted=False).indices
    return x.gather(-1, places), places


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be greater than 0 and at most 1, got {ratio}")


Ratio = Annotated[float, Field(gt=0, le=1)]
ValueName = Literal["fp32", "bf16", "fp16", "int8", "qsgd"]
VALUES: dict[str, Compressor] = {
    "fp32": FP32,
    "bf16": BF16,
    "fp16": Cast("fp16"),
    "int8": Int8(64),
    "qsgd": QSGD(8, 64),
}
"""What kept entries may be sent as; int8 and qsgd in blocks of 64."""


@compressors.register
class TopKConfig(CompressorConfig):
    """The largest of each parameter."""

    name: Literal["top_k"] = "top_k"
    ratio: Ratio = 0.01
    """How many are kept."""
    values: ValueName = "bf16"
    """How they are sent; int8 and qsgd (unbiased) have a scale for each 64."""

    def build(self) -> TopK:
        """The compressor itself."""
        return TopK(self.ratio, VALUES[self.values])


@compressors.register
class BlockTopKConfig(CompressorConfig):
    """The largest of each block: fast, and a place in a byte."""

    name: Literal["block_top_k"] = "block_top_k"
    ratio: Ratio = 0.01
    """How many are kept, to the nearest whole number of a block, at least one."""
    block: int = Field(100, ge=1, le=LARGEST_BLOCK)
    """Entries of which the largest are kept: up to 256 a place takes 8 bits, up to 4,096 12, beyond 16."""
    values: ValueName = "bf16"
    """How they are sent; int8 and qsgd (unbiased) have a scale for each 64."""

    @model_validator(mode="after")
    def _keeps_about_what_it_says(self) -> BlockTopKConfig:
        if self.ratio * self.block < 0.5:
            fitting = round(1 / self.ratio)
            remedy = f"block ≥ {fitting}" if fitting <= LARGEST_BLOCK else "top_k"
            raise ValueError(f"ratio={self.ratio} of block={self.block} is less than half an entry: take {remedy}")
        return self

    def build(self) -> BlockTopK:
        """The compressor itself."""
        return BlockTopK(max(1, round(self.ratio * self.block)), self.block, VALUES[self.values])


@compressors.register
class RandKConfig(CompressorConfig):
    """Some by chance; the places need not be sent."""

    name: Literal["rand_k"] = "rand_k"
    ratio: Ratio = 0.01
    """How many are kept."""
    unbiased: bool = False
    """Multiply them by 1 / ratio: right in the mean, but far from the vector, so not for error feedback."""

    def build(self) -> RandK:
        """The compressor itself."""
        return RandK(self.ratio, self.unbiased)
