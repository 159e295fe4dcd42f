"""Whole models as one message, each parameter compressed alone.

Bounds are relative to what is compressed together, so small parameters would vanish beside large ones if all were one vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from disttrain import random
from disttrain.compression.base import Compressor, Variance
from disttrain.parameters import Layout


def draw_keys(seed: int, parameter: int, exchange: int, workers: Tensor) -> Tensor:
    """The keys, int64 ``[L]``, by which workers compress one parameter in one exchange.

    Args:
        seed: the run's.
        parameter: its number in the layout.
        exchange: its number.
        workers: int64 ``[L]``, by their number in the whole run.
    """
    return random.key(random.key(seed, random.Stream.COMPRESSION, parameter), random.Stream.COMPRESSION, exchange, workers)


@dataclass(frozen=True)
class ParameterwiseContraction:
    """C of vectors ``[..., d]`` of all parameters, with ‖C(x) − x‖² ≤ (1 − δ)‖x‖² in the mean, for some δ > 0.

    What an unbiased compressor decodes to is divided by 1 + ω, which makes it one with δ = 1 / (1 + ω).
    """

    compressor: Compressor
    layout: Layout

    @property
    def payload_bytes(self) -> int:
        """Of one vector, exactly."""
        return sum(self._sizes)

    def encode(self, x: Tensor, seed: int, exchange: int, workers: Tensor) -> Tensor:
        """``[L, d]`` to uint8 ``[L, payload_bytes]``; seed, exchange and workers are those of :func:`draw_keys`."""
        payloads = []
        for number, unit in enumerate(self.layout.units):
            keys = draw_keys(seed, number, exchange, workers).to(x.device) if self.compressor.is_random else None
            payloads.append(self.compressor.encode(x[:, unit.offset : unit.offset + unit.numel], keys))
        return torch.cat(payloads, dim=-1)

    def decode(self, payload: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 ``[..., payload_bytes]`` to ``[..., d]``; NaN in every parameter that was not finite, zeros between them."""
        x = torch.zeros(*payload.shape[:-1], self.layout.d, dtype=dtype, device=payload.device)
        for unit, part in zip(self.layout.units, payload.split(self._sizes, dim=-1), strict=True):
            mine, bound = x[..., unit.offset : unit.offset + unit.numel], self.compressor.bound(unit.numel)
            mine.copy_(self.compressor.decode(part, unit.numel))
            if isinstance(bound, Variance):
                mine /= 1 + bound.omega
        return x

    @property
    def _sizes(self) -> list[int]:
        return [self.compressor.payload_bytes(unit.numel) for unit in self.layout.units]
