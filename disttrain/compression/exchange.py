"""How the workers' payloads become one mean: gathered by everybody, averaged in two phases, or all-reduced.

All parameters of a bucket travel in one message, but each is compressed alone, so that results do not depend on the buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from disttrain import random
from disttrain.compression.base import Compressor
from disttrain.compression.codec import FINITE, USED, has_flag, set_flag
from disttrain.compression.feedback import State
from disttrain.parameters import Unit
from disttrain.worlds.traffic import all_gather_wire_bytes, all_reduce_wire_bytes, transpose_wire_bytes
from disttrain.worlds.world import World


@dataclass(frozen=True)
class Proposal:
    """What this process's workers have to say about one parameter."""

    unit: Unit
    x: Tensor
    """``[L, d]``, to be averaged."""
    keys: Tensor | None
    """int64 ``[L]``, for a compressor that draws."""
    used: Tensor | None
    """Booleans ``[L]``: whether the parameter took part in this step; None: it did."""
    old: State
    new: State


@dataclass
class Outcome:
    """What came of it: see :class:`~disttrain.compression.feedback.Exchanged`."""

    mean: Tensor
    """``[1, d]``."""
    finite: Tensor
    """A boolean, equal on all workers: whether everybody's ``x`` was finite."""
    used: Tensor
    """A boolean, equal on all workers: whether anybody used the parameter."""
    own: Callable[[Tensor, float], None]

    def add_own_(self, out: Tensor, scale: float = 1.0) -> None:
        """``out [L, d] += scale ·`` what this process's workers' own payloads decode to."""
        self.own(out, scale)


SERVER_ERROR = "server_error"


class Exchange:
    """How proposals become outcomes; states of its own are declared like those of a feedback."""

    local: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ()
    is_random: bool = False
    """Whether proposals need keys."""

    def sizes(self, unit: Unit, num_workers: int) -> Mapping[str, int]:
        """Entries of each state of a parameter."""
        return {}

    def start(self, number: int, state: Mapping[str, Tensor], seed: int) -> None:
        """Fill in the first states ``[rows, entries]`` of the layout's parameter ``number``; they are zero."""

    def wire_bytes(self, units: Sequence[Unit], num_workers: int) -> int:
        """What a worker sends for one exchange of these parameters."""
        raise NotImplementedError(f"{type(self).__name__} must define wire_bytes()")

    def run(self, world: World, proposals: Sequence[Proposal], weights: Tensor) -> list[Outcome]:
        """Average the proposals.

        Args:
            world: the lane that this runs on.
            proposals: the same parameters on all workers.
            weights: ``[size]``, how much each worker counts, 1 in the mean.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run()")


@dataclass(frozen=True)
class Gather(Exchange):
    """Everybody gathers everybody's payloads, and sums what they decode to in the workers' order.

    One message, bitwise equal on all workers; but what a worker sends grows with their number.
    """

    compressor: Compressor

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether the compressor draws."""
        return self.compressor.is_random

    def wire_bytes(self, units: Sequence[Unit], num_workers: int) -> int:
        """A ring all-gather of all payloads."""
        return all_gather_wire_bytes(sum(self.compressor.payload_bytes(unit.numel) for unit in units), num_workers)

    def run(self, world: World, proposals: Sequence[Proposal], weights: Tensor) -> list[Outcome]:
        """One gather."""
        payloads = [_encode(self.compressor, each.x, each.keys, each.used) for each in proposals]
        everybody = world.gather(torch.cat(payloads, dim=-1))[0]  # [size, bytes]
        parts = everybody.split([payload.shape[-1] for payload in payloads], dim=-1)
        return [
            Outcome(
                self.compressor.decoded_sum(part, each.unit.numel, weights / world.size, sum_dtype(each.x))[None],
                has_flag(part, FINITE).all(),
                has_flag(part, USED).any(),
                partial(_add_decoded, self.compressor, payload),
            )
            for each, payload, part in zip(proposals, payloads, parts, strict=True)
        ]


@dataclass(frozen=True)
class TwoPhase(Exchange):
    """Every worker averages one part of each parameter, and compresses the mean once more for the others.

    A worker sends about two payloads, whatever their number. With ``remembers``, what the second compression leaves out is added
    to the next mean; this is the server's side of EF21-BC ("EF21 with Bells & Whistles", arXiv 2110.03294, section 4), where the
    difference of the server's estimate and the one it has sent is that very error.
    """

    compressor: Compressor
    remembers: bool

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether the compressor draws."""
        return self.compressor.is_random

    @property
    def local(self) -> tuple[str, ...]:  # type: ignore[override]
        """A server's error, of its part."""
        return (SERVER_ERROR,) if self.remembers else ()

    def sizes(self, unit: Unit, num_workers: int) -> Mapping[str, int]:
        """A part each."""
        return {kind: part_of(unit, num_workers) for kind in self.local}

    def wire_bytes(self, units: Sequence[Unit], num_workers: int) -> int:
        """An all-to-all of all parts' payloads, and a ring all-gather of one's."""
        part = sum(self.compressor.payload_bytes(part_of(unit, num_workers)) for unit in units)
        return transpose_wire_bytes(num_workers * part, num_workers) + all_gather_wire_bytes(part, num_workers)

    def run(self, world: World, proposals: Sequence[Proposal], weights: Tensor) -> list[Outcome]:
        """One all-to-all, and one gather."""
        firsts = [self._first(each, world.size) for each in proposals]
        sizes = [first.shape[-1] for first in firsts]
        heard = world.transpose(torch.cat(firsts, dim=-1)).split(sizes, dim=-1)
        seconds = [self._second(each, part, weights / world.size, world) for each, part in zip(proposals, heard, strict=True)]
        everybody = world.gather(torch.cat(seconds, dim=-1))[0].split(sizes, dim=-1)  # [size, bytes]
        outcomes = []
        for each, first, part in zip(proposals, firsts, everybody, strict=True):
            parts = self.compressor.decode(part, part_of(each.unit, world.size))
            mean = parts.flatten()[None, : each.unit.numel].to(sum_dtype(each.x))
            own = partial(self._add_own, first)
            outcomes.append(Outcome(mean, has_flag(part, FINITE).all(), has_flag(part, USED).any(), own))
        return outcomes

    def _first(self, each: Proposal, size: int) -> Tensor:
        """What every server is sent, ``[L, size, bytes]``."""
        parts = cut(each.x, part_of(each.unit, size), size)
        keys = None if each.keys is None else random.bits(each.keys, size)
        return _encode(self.compressor, parts, keys, None if each.used is None else each.used[:, None])

    def _second(self, each: Proposal, heard: Tensor, weights: Tensor, world: World) -> Tensor:
        """The mean of what a server has heard, ``[L, size, bytes]``, compressed: ``[L, bytes]``."""
        part = part_of(each.unit, world.size)
        mean = self.compressor.decoded_sum(heard, part, weights, sum_dtype(each.x))
        if self.remembers:
            mean += each.old[SERVER_ERROR]
        if each.unit.numel < world.size * part:  # what fills up the last parts is nobody's, whatever it decodes to
            entries = torch.arange(part, device=mean.device)
            mean *= world.positions.to(mean.device)[:, None] * part + entries < each.unit.numel
        keys = None if each.keys is None else random.bits(each.keys, world.size + 1)[:, -1]
        payload = _encode(self.compressor, mean, keys, has_flag(heard, USED).any(-1))
        if self.remembers:
            each.new[SERVER_ERROR].copy_(mean)
            self.compressor.add_decoded_(each.new[SERVER_ERROR], payload, -1.0)
        return payload

    def _add_own(self, first: Tensor, out: Tensor, scale: float) -> None:
        size = first.shape[1]
        part = -(-out.shape[-1] // size)
        decoded = self.compressor.decode(first, part).flatten(1)[:, : out.shape[-1]]
        out.add_(decoded.to(out.dtype), alpha=scale)


@dataclass(frozen=True)
class AllReduce(Exchange):
    """The plain mean: of the identity, whose payloads may be summed, and of every step of a warm-up."""

    def wire_bytes(self, units: Sequence[Unit], num_workers: int) -> int:
        """A ring all-reduce in float32, of the entries alone: whether a parameter was used is one more for each."""
        return all_reduce_wire_bytes(4 * sum(unit.numel for unit in units), num_workers)

    def run(self, world: World, proposals: Sequence[Proposal], weights: Tensor) -> list[Outcome]:
        """One all-reduce; whether a parameter was used travels as one more entry."""
        packed = torch.cat([each.x.to(sum_dtype(each.x)) for each in proposals], dim=-1)
        used = torch.stack([used_by(each) for each in proposals], dim=-1).to(packed.dtype)
        own_weights = weights[world.positions].to(packed)[:, None]
        means, used_anywhere = world.mean(torch.cat([packed * own_weights, used], dim=-1)).split(
            [packed.shape[-1], len(proposals)], -1
        )
        numels = [each.unit.numel for each in proposals]
        parts = zip(packed.split(numels, -1), means.split(numels, -1), used_anywhere[0] > 0, strict=True)
        return [Outcome(mean, mean.isfinite().all(), by, partial(add, own)) for own, mean, by in parts]


def _encode(compressor: Compressor, x: Tensor, keys: Tensor | None, used: Tensor | None) -> Tensor:
    """Payloads ``[..., bytes]``, with a flag for those whose parameter was used (None: all)."""
    payload = compressor.encode(x, keys)
    everybody = torch.ones(payload.shape[:-1], dtype=torch.bool, device=payload.device)
    set_flag(payload, USED, everybody if used is None else everybody & used)
    return payload


def used_by(each: Proposal) -> Tensor:
    """Booleans ``[L]``: which of the workers here used the parameter."""
    return torch.ones(len(each.x), dtype=torch.bool, device=each.x.device) if each.used is None else each.used


def _add_decoded(compressor: Compressor, payload: Tensor, out: Tensor, scale: float) -> None:
    compressor.add_decoded_(out, payload, scale)


def add(own: Tensor, out: Tensor, scale: float) -> None:
    """``out += scale · own``, for an :class:`Outcome` of what was sent as it is."""
    out.add_(own, alpha=scale)


def sum_dtype(x: Tensor) -> torch.dtype:
    """Of sums over workers: float32, of float64 its own."""
    return torch.promote_types(x.dtype, torch.float32)


def part_of(unit: Unit, num_workers: int) -> int:
    """Entries of the part of a parameter that one worker averages in two phases."""
    return -(-unit.numel // num_workers)


def cut(x: Tensor, part: int, num_workers: int) -> Tensor:
    """``[L, d]`` cut into ``[L, num_workers, part]``, zeros after the end."""
    return F.pad(x, (0, num_workers * part - x.shape[-1])).view(*x.shape[:-1], num_workers, part)


def joined(units: Sequence[Unit], parts_by_worker: Sequence[Tensor]) -> list[Tensor]:
    """Every parameter's ``[d]`` from all workers' parts of all parameters, one after the other in each."""
    num_workers = len(parts_by_worker)
    by_unit = zip(*(each.split([part_of(unit, num_workers) for unit in units]) for each in parts_by_worker), strict=True)
    return [torch.cat(own)[: unit.numel] for unit, own in zip(units, by_unit, strict=True)]
