"""PowerSGD: every matrix as the product of two thin ones, which, being linear in the gradient, can be all-reduced.

"PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization" (arXiv 1905.13727), algorithm 1: one step of
subspace iteration from the last step's factor. For workers' matrices Mᵢ [rows, columns] and the shared Q [columns, rank]

    P = orth(mean MᵢQ)    Qᵢ = MᵢᵀP    Q = mean Qᵢ    mean M ≈ PQᵀ

A worker's own payload decodes to PQᵢᵀ, so what error feedback remembers is its own, as in the paper's text (the public code takes
PQᵀ). Where workers' data differ, what cancels in the mean never enters P: under EF14 every worker goes on remembering it, and its
error grows by about that much in each step; the estimates of EF21 stay bounded. Vectors, and matrices that would not
become smaller, are averaged as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain.compression.base import Bound, CompressorConfig, Contraction, compressors
from disttrain.compression.exchange import Exchange, Outcome, Proposal, add, sum_dtype, used_by
from disttrain.parameters import Unit
from disttrain.random import Stream, generator
from disttrain.worlds.traffic import all_reduce_wire_bytes
from disttrain.worlds.world import World


@dataclass(frozen=True)
class PowerSGD(Exchange):
    """Compressor and exchange in one.

    Args:
        rank: columns of the factors.

    Raises:
        ValueError: unless positive.
    """

    rank: int = 4
    is_linear: ClassVar[bool] = True
    shared: ClassVar[tuple[str, ...]] = ("factor",)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be positive, got {self.rank}")

    @property
    def nominal_delta(self) -> float:
        """Of a matrix of a million entries."""
        return min(1.0, self.rank / 2**10)

    def bound(self, d: int) -> Bound:
        """About rank / √d of a square matrix, in the mean over random factors; none for the worst one, which sees nothing."""
        return Contraction(min(1.0, self.rank / sqrt(max(1, d))))

    def sizes(self, unit: Unit, num_workers: int) -> Mapping[str, int]:
        """Q."""
        factors = self._factors(unit)
        return {} if factors is None else {"factor": factors[1] * factors[2]}

    def start(self, number: int, state: Mapping[str, Tensor], seed: int) -> None:
        """Q is drawn, the same on all workers."""
        if "factor" in state:
            draw = torch.randn(state["factor"].shape, generator=generator(seed, Stream.COMPRESSION, worker=number))
            state["factor"].copy_(draw)

    def wire_bytes(self, units: Sequence[Unit], num_workers: int) -> int:
        """Two ring all-reduces in float32: of P and what is not compressed, and of Q."""
        factors = [self._factors(unit) for unit in units]
        first = sum(unit.numel if each is None else each[0] * each[2] for unit, each in zip(units, factors, strict=True))
        second = sum(each[1] * each[2] for each in factors if each is not None)
        return all_reduce_wire_bytes(4 * first, num_workers) + all_reduce_wire_bytes(4 * second, num_workers)

    def run(self, world: World, proposals: Sequence[Proposal], weights: Tensor) -> list[Outcome]:
        """Two all-reduces."""
        weight = weights[world.positions][:, None].to(proposals[0].x.device)
        firsts = [self._first(each) for each in proposals]  # [L, rows · rank], or [L, d]
        used = torch.stack([used_by(each) for each in proposals], dim=-1).to(firsts[0].dtype)
        sizes = [first.shape[-1] for first in firsts]
        *means, used = world.mean(torch.cat([first * weight for first in firsts] + [used], dim=-1)).split(
            [*sizes, len(sizes)], -1
        )
        pairs = {number: self._second(each, mean) for number, (each, mean) in enumerate(zip(proposals, means, strict=True))
                 if self._factors(each.unit) is not None}  # fmt: skip
        factors = iter(self._mean_factors(world, [own * weight for _, own in pairs.values()]))
        outcomes = []
        for number, (each, first, mean) in enumerate(zip(proposals, firsts, means, strict=True)):
            if number in pairs:
                outcomes.append(self._outcome(each, *pairs[number], next(factors), used[0, number] > 0))
            else:
                outcomes.append(Outcome(mean, mean.isfinite().all(), used[0, number] > 0, partial(add, first)))
        return outcomes

    def _factors(self, unit: Unit) -> tuple[int, int, int] | None:
        """Rows, columns and rank of a parameter as a matrix; None if it is sent as it is."""
        if len(unit.shape) < 2:
            return None
        rows, columns = unit.shape[0], prod(unit.shape[1:])
        rank = min(self.rank, rows, columns)
        return (rows, columns, rank) if rank * (rows + columns) < rows * columns else None

    def _first(self, each: Proposal) -> Tensor:
        """MᵢQ of every worker here; of what is not compressed, all."""
        x, factors = each.x.to(sum_dtype(each.x)), self._factors(each.unit)
        if factors is None:
            return x.clone()
        rows, columns, rank = factors
        return (x.view(-1, rows, columns) @ each.old["factor"].view(1, columns, rank)).flatten(1)

    def _second(self, each: Proposal, mean: Tensor) -> tuple[Tensor, Tensor]:
        """P ``[1, rows, rank]``, and MᵢᵀP of every worker here, flat."""
        factors = self._factors(each.unit)
        assert factors is not None
        rows, columns, rank = factors
        p = torch.linalg.qr(mean.view(1, rows, rank).nan_to_num()).Q
        own = each.x.to(p.dtype).view(-1, rows, columns).mT @ p
        return p, own.flatten(1)

    def _mean_factors(self, world: World, own: Sequence[Tensor]) -> list[Tensor]:
        if not own:
            return []
        return list(world.mean(torch.cat(list(own), dim=-1)).split([each.shape[-1] for each in own], -1))

    def _outcome(self, each: Proposal, p: Tensor, own: Tensor, mean: Tensor, used: Tensor) -> Outcome:
        each.new["factor"].copy_(mean)
        product = _product(p, mean)
        return Outcome(product, product.isfinite().all(), used, partial(_add_product, p, own))


def _product(p: Tensor, factor: Tensor) -> Tensor:
    """PQᵀ of ``[1, rows, rank]`` and ``[L, columns · rank]``, flat: ``[L, rows · columns]``."""
    return (p @ factor.view(len(factor), -1, p.shape[-1]).mT).flatten(1)


def _add_product(p: Tensor, own: Tensor, out: Tensor, scale: float) -> None:
    out.add_(_product(p, own), alpha=scale)


@compressors.register
class PowerSGDConfig(CompressorConfig):
    """Matrices as products of thin ones, all-reduced."""

    name: Literal["power_sgd"] = "power_sgd"
    rank: int = Field(4, ge=1)
    """Columns of the factors."""

    def build(self) -> PowerSGD:
        """Compressor and exchange in one."""
        return PowerSGD(self.rank)
