"""The contract of a compressor: a pure function from vectors to bytes, and back to something near them.

Its unit is one parameter, or a fixed block inside it, never a bucket of DDP's, whose borders move. Leading axes are batch, so
that row r of a simulation is compressed as worker r compresses alone. The first byte of a payload says whether all of the
input was finite: a quantizer would hide a NaN, and with it a worker that diverges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from disttrain.component import ComponentConfig, Registry

SENDERS_AT_ONCE = 64  # decoded to dense vectors at a time


@dataclass(frozen=True)
class Contraction:
    """E‖C(x) − x‖² ≤ (1 − δ)‖x‖²."""

    delta: float


@dataclass(frozen=True)
class Variance:
    """E C(x) = x and E‖C(x) − x‖² ≤ ω‖x‖²."""

    omega: float


Bound = Contraction | Variance


class Compressor:
    """Turns vectors ``[..., d]`` into payloads of a length that depends on ``d`` alone.

    Bounds hold up to rounding in float32, and for entries that are not denormal there.
    """

    is_random: ClassVar[bool] = False
    """Whether :meth:`encode` draws, and needs keys."""
    is_linear: ClassVar[bool] = False
    """Whether payloads could be summed instead of gathered."""

    @property
    def nominal_delta(self) -> float:
        """The share of a long vector's energy that can be counted on; EControl's η goes by it."""
        bound = self.bound(2**20)
        return bound.delta if isinstance(bound, Contraction) else 1 / (1 + bound.omega)

    def payload_bytes(self, d: int) -> int:
        """Bytes of one payload, exactly."""
        raise NotImplementedError(f"{type(self).__name__} must define payload_bytes()")

    def encode(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Compress the last axis: floats ``[..., d]`` to uint8 ``[..., payload_bytes(d)]``.

        Args:
            x: not changed.
            keys: int64 ``[...]``, one for each vector, from ``disttrain.random``; only a compressor that draws needs them.
        """
        raise NotImplementedError(f"{type(self).__name__} must define encode()")

    def decode(self, payload: Tensor, d: int) -> Tensor:
        """Expand uint8 ``[..., payload_bytes(d)]`` to floats ``[..., d]``; all NaN where the input was not finite."""
        raise NotImplementedError(f"{type(self).__name__} must define decode()")

    def bound(self, d: int) -> Bound:
        """How far C(x) may be from x, for vectors of ``d`` entries."""
        raise NotImplementedError(f"{type(self).__name__} must define bound()")

    def add_decoded_(self, out: Tensor, payload: Tensor, scale: float = 1.0) -> None:
        """``out [..., d] += scale · decode(payload)``; of a payload that is not finite, NaN arrive in one entry at least."""
        out.add_(self.decode(payload, out.shape[-1]).to(out.dtype), alpha=scale)

    def decoded_sum(self, payloads: Tensor, d: int, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """The weighted sum over senders, uint8 ``[..., n, payload_bytes(d)]`` to ``[..., d]``, added in their order.

        Args:
            payloads: of n senders.
            d: entries of a vector.
            weights: ``[n]``.
            dtype: of the result, and of the sum.
        """
        total = torch.zeros(*payloads.shape[:-2], d, dtype=dtype, device=payloads.device)
        for start in range(0, payloads.shape[-2], SENDERS_AT_ONCE):
            some = slice(start, start + SENDERS_AT_ONCE)
            for row in (self.decode(payloads[..., some, :], d).to(dtype) * weights[some, None].to(dtype)).unbind(-2):
                total += row
        return total


class CompressorConfig(ComponentConfig):
    """What every compressor's config has."""

    def build(self) -> Any:
        """The compressor itself: a :class:`Compressor`, or PowerSGD, which is an exchange too."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")


compressors: Registry[CompressorConfig] = Registry("strategy.compressor", default="block_top_k")
