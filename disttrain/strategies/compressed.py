"""Compressed gradients: every step, what is left of them after compression is exchanged, and error feedback keeps the rest.

How vectors are compressed and averaged is `disttrain/compression/mean.py`; here it meets a training step. Replicas stay equal bit
by bit without ever being compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain.compression.base import Compressor
from disttrain.compression.exchange import Outcome
from disttrain.compression.feedback import Feedback
from disttrain.compression.mean import CompressedMean, CompressedMeanConfig, ReducerName
from disttrain.compression.power_sgd import PowerSGD
from disttrain.parameters import Layout, Unit
from disttrain.strategies.base import Strategy, strategies
from disttrain.strategies.ddp import GradientConfig
from disttrain.worlds.traffic import all_reduce_wire_bytes
from disttrain.worlds.world import World


class Compressed(Strategy):
    """Average compressed gradients in every step; the workers stay bitwise equal.

    Args:
        compressor: what becomes of a vector.
        feedback: what becomes of the rest.
        reducer: ``gather``, ``two_phase`` or ``all_reduce``; ``auto``: whichever sends fewer bytes.
        warmup_steps: steps that average gradients as they are, and from which the feedback's states begin.
        checksum_every: steps between comparisons of the replicas' bits; 0: never.
        find_unused_parameters: a parameter may go without a gradient in a step; one whose gradients are zero on all workers
            is left as it is, and nothing is lost of it.

    Raises:
        ValueError: if compressor, feedback and reducer do not work together; in :meth:`begin`, if the feedback is for another
            number of workers.
    """

    replicated = lockstep = True

    def __init__(
        self,
        compressor: Compressor | PowerSGD,
        feedback: Feedback | None = None,
        reducer: ReducerName = "auto",
        warmup_steps: int = 0,
        checksum_every: int = 0,
        find_unused_parameters: bool = False,
    ) -> None:
        self.mean = CompressedMean(compressor, feedback, reducer)
        if warmup_steps < 0 or checksum_every < 0:
            raise ValueError(f"warmup_steps and checksum_every must not be negative, got {warmup_steps} and {checksum_every}")
        self.warmup_steps, self.checksum_every = warmup_steps, checksum_every
        self.find_unused_parameters = find_unused_parameters

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Lay out the states, and choose the reducer."""
        super().begin(x, layout, world, seed)
        self._dtype = torch.promote_types(x.dtype, torch.float32)
        self.mean.begin(layout, world, self._dtype, x.device, seed)
        self._open: dict[str, Outcome] = {}  # of the exchange under way, by parameter
        self._finite, self._scale = True, 1.0

    # --- a step ------------------------------------------------------------------------------------------------------

    def reduce(self, units: Sequence[Unit], gradients: Sequence[Tensor]) -> list[Tensor]:
        """The gradients' mean as the optimizer is to see it; the states change when all parameters have been here."""
        if any(unit.name in self._open for unit in units):  # the last exchange was broken off
            self._open = {}
        if not self._open:
            self._scale = 1.0 if self.loss_scale is None else self.loss_scale()
        scale = self._scale
        true = [g if scale == 1.0 else g.to(self._dtype) / scale for g in gradients]
        lane = self.gradients or self.world
        if int(self.mean.exchanges) < self.warmup_steps:
            means, outcomes = self.mean.average(lane, units, true)
        else:
            means, outcomes = self.mean.compress(lane, units, true, self.find_unused_parameters)
        self._close(units, outcomes)
        return [
            mean.to(g.dtype) if scale == 1.0 else (mean * scale).to(g.dtype) for g, mean in zip(gradients, means, strict=True)
        ]

    def _close(self, units: Sequence[Unit], outcomes: Sequence[Outcome]) -> None:
        """Once all parameters have been exchanged, take over their new states if everybody's payloads were finite."""
        self._open |= {unit.name: outcome for unit, outcome in zip(units, outcomes, strict=True)}
        if len(self._open) < len(self.layout.units):
            return
        self._finite = bool(torch.stack([outcome.finite for outcome in self._open.values()]).all())
        self._open = {}
        if self._finite:
            self.mean.advance()

    def before_step(self) -> bool:
        """Every worker skips a step in which some worker's gradients were not finite; all have seen its payload's header."""
        return self._finite

    def after_step(self) -> None:
        """Compare the replicas, if it is time to."""
        if self.checksum_every and int(self.mean.exchanges) % self.checksum_every == 0:
            self._compare_replicas()

    def _compare_replicas(self) -> None:
        """Raise RuntimeError if some worker's parameters differ from worker 0's; 8 bytes a worker."""
        words = self.x.detach().contiguous().view(torch.int16).long()
        places = torch.arange(words.shape[-1], device=words.device) * 0x3C6EF372FE94F82B
        mixed = (words + places) * 0x1B873593CC9E2D51  # any odd numbers
        sums = self.world.gather((mixed ^ (mixed >> 29)).sum(-1, keepdim=True))[0, :, 0]
        if odd := [int(worker) for worker in (sums != sums[0]).nonzero()]:
            raise RuntimeError(f"worker {odd[0]}'s parameters differ from worker 0's after {int(self.mean.exchanges)} steps: "
                               "somebody changes them, or computes otherwise")  # fmt: skip

    def agree(self, values: Tensor) -> Tensor:
        """The mean over all workers."""
        return self.world.mean(values)

    # --- states ------------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> dict[str, Tensor]:
        """Estimates of the mean gradient, and how many exchanges there were."""
        return self.mean.shared

    @property
    def local(self) -> dict[str, Tensor]:
        """Each worker's errors and estimates."""
        return self.mean.local

    def adopt(self, saved: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over errors and estimates of another number of workers."""
        self.mean.adopt(saved)

    @property
    def temporary_copies(self) -> float:
        """Those of the compressed mean."""
        return self.mean.temporary_copies

    @property
    def description(self) -> str:
        """Compressor, reducer and feedback, and what a step sends."""
        sent, ddp = self.mean.wire_bytes, all_reduce_wire_bytes(4 * self.layout.numel, self.world.size)
        share = f", {100 * sent / ddp:.3g}% of DDP's" if ddp else ""
        little = self.mean.compressor.nominal_delta < 0.5
        advice = "; for SGD: Adam and Muon fall far behind with so little" if little else ""
        return f"{self.mean.description}: {sent:,} bytes per step and worker{share}{advice}"


@strategies.register
class CompressedConfig(CompressedMeanConfig, GradientConfig):
    """The gradients' mean, compressed, with error feedback."""

    name: Literal["compressed"] = "compressed"
    warmup_steps: int = Field(0, ge=0)
    """Steps that are not compressed, at the start."""
    checksum_every: int = Field(0, ge=0)
    """Steps between comparisons of the workers' parameters, 8 bytes each; 0: never."""

    def build(self) -> Compressed:
        """The strategy itself."""
        return Compressed(
            self.compressor.build(),
            self.feedback.build(),
            self.reducer,
            self.warmup_steps,
            self.checksum_every,
            self.find_unused_parameters,
        )
