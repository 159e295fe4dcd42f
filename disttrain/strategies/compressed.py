"""Compressed gradients: every step, what is left of them after compression is exchanged, and error feedback keeps the rest.

Which compressor, which feedback and which way of averaging are parts of their own (``disttrain/compression``); here they meet a
training step. Every worker sees the same payloads or means, so replicas stay equal bit by bit without ever being compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator
from torch import Tensor

from disttrain import random
from disttrain.compression.base import Compressor, CompressorConfig, compressors
from disttrain.compression.exchange import (
    SERVER_ERROR,
    AllReduce,
    Exchange,
    Gather,
    Outcome,
    Proposal,
    TwoPhase,
    cut,
    joined,
    part_of,
)
from disttrain.compression.feedback import EF14, EF14Config, Feedback, FeedbackConfig, feedbacks
from disttrain.compression.memory import Memory
from disttrain.compression.power_sgd import PowerSGD
from disttrain.compression.sparse import BlockTopKConfig
from disttrain.parameters import Layout, Unit
from disttrain.strategies.base import Strategy, strategies
from disttrain.strategies.ddp import GradientConfig
from disttrain.worlds.traffic import all_reduce_wire_bytes
from disttrain.worlds.world import World

ReducerName = Literal["auto", "gather", "two_phase", "all_reduce"]


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
        self.compressor, self.reducer_name = compressor, reducer
        self.feedback = (EF14() if feedback is None else feedback).fitted_to(compressor)
        check_reducer(compressor, reducer)
        if warmup_steps < 0 or checksum_every < 0:
            raise ValueError(f"warmup_steps and checksum_every must not be negative, got {warmup_steps} and {checksum_every}")
        self.warmup_steps, self.checksum_every = warmup_steps, checksum_every
        self.find_unused_parameters = find_unused_parameters

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Lay out the states, and choose the reducer."""
        super().begin(x, layout, world, seed)
        self.exchange = choose(self.compressor, self.feedback, self.reducer_name, layout, world.size)
        weights = self.feedback.weights(world.size)
        self._own_weights = None if (weights == 1).all() else weights[world.positions, None].to(x.device)
        self.weights = weights.to(x.device)
        local, shared = self.feedback.local + self.exchange.local, self.feedback.shared + self.exchange.shared
        rows = dict.fromkeys(local, len(world.ids)) | dict.fromkeys(shared, 1)
        own = self.feedback.local + self.feedback.shared
        sizes = {u.name: dict.fromkeys(own, u.numel) | dict(self.exchange.sizes(u, world.size)) for u in layout.units}
        self._dtype = torch.promote_types(x.dtype, torch.float32)
        self.memory = Memory(layout, sizes, rows, self._dtype, x.device)
        self._exchanges = torch.zeros(1, 1, dtype=torch.int64)  # that were committed
        for number, unit in enumerate(layout.units):
            self.exchange.start(number, self.memory.of(unit)[0], seed)
        self._local_kinds = local
        self._numbers = {unit.name: number for number, unit in enumerate(layout.units)}
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
        means = self._average(units, true) if int(self._exchanges) < self.warmup_steps else self._compress(units, true)
        return [
            mean.to(g.dtype) if scale == 1.0 else (mean * scale).to(g.dtype) for g, mean in zip(gradients, means, strict=True)
        ]

    def _compress(self, units: Sequence[Unit], gradients: Sequence[Tensor]) -> list[Tensor]:
        proposals = [self._propose(unit, g) for unit, g in zip(units, gradients, strict=True)]
        outcomes = self.exchange.run(self.gradients or self.world, proposals, self.weights)
        means = []
        for proposal, outcome in zip(proposals, outcomes, strict=True):
            if not self.find_unused_parameters or outcome.used:
                means.append(self.feedback.commit(outcome, proposal.old, proposal.new))
            else:  # DDP leaves such a parameter without a gradient, so what its payloads held would be lost
                self.memory.keep(proposal.unit)
                means.append(torch.zeros_like(outcome.mean))
        self._close(units, outcomes)
        return means

    def _propose(self, unit: Unit, g: Tensor) -> Proposal:
        old, new = self.memory.of(unit)
        used = g.ne(0).any(-1) if self.find_unused_parameters else None
        x = self.feedback.propose(self._weighted(g), old, new)
        return Proposal(unit, x, self._keys(unit) if self.exchange.is_random else None, used, old, new)

    def _average(self, units: Sequence[Unit], gradients: Sequence[Tensor]) -> list[Tensor]:
        """A step of the warm-up: the plain mean, from which the feedback's states begin."""
        proposals = [Proposal(unit, g, None, None, *self.memory.of(unit)) for unit, g in zip(units, gradients, strict=True)]
        outcomes = AllReduce().run(self.gradients or self.world, proposals, torch.ones_like(self.weights))
        for g, proposal, outcome in zip(gradients, proposals, outcomes, strict=True):
            self.memory.keep(proposal.unit)  # the exchange's own states
            self.feedback.start(self._weighted(g), outcome.mean, proposal.new)
        self._close(units, outcomes)
        return [outcome.mean.clone() for outcome in outcomes]

    def _weighted(self, g: Tensor) -> Tensor:
        """A weighted worker's gradients, divided by its weight."""
        return g if self._own_weights is None else (g / self._own_weights).to(self._dtype)

    def _keys(self, unit: Unit) -> Tensor:
        seed = random.key(self.seed, random.Stream.COMPRESSION, self._numbers[unit.name])
        return random.key(seed, random.Stream.COMPRESSION, int(self._exchanges), self.world.ids).to(self.x.device)

    def _close(self, units: Sequence[Unit], outcomes: Sequence[Outcome]) -> None:
        """Once all parameters have been exchanged, take over their new states if everybody's payloads were finite."""
        self._open |= {unit.name: outcome for unit, outcome in zip(units, outcomes, strict=True)}
        if len(self._open) < len(self.layout.units):
            return
        self._finite = bool(torch.stack([outcome.finite for outcome in self._open.values()]).all())
        self._open = {}
        if self._finite:
            self.memory.advance()
            self._exchanges += 1

    def before_step(self) -> bool:
        """Every worker skips a step in which some worker's gradients were not finite; all have seen its payload's header."""
        return self._finite

    def after_step(self) -> None:
        """Compare the replicas, if it is time to."""
        if self.checksum_every and int(self._exchanges) % self.checksum_every == 0:
            self._compare_replicas()

    def _compare_replicas(self) -> None:
        """Raise RuntimeError if some worker's parameters differ from worker 0's; 8 bytes a worker."""
        words = self.x.detach().contiguous().view(torch.int16).long()
        places = torch.arange(words.shape[-1], device=words.device) * 0x3C6EF372FE94F82B
        mixed = (words + places) * 0x1B873593CC9E2D51  # any odd numbers
        sums = self.world.gather((mixed ^ (mixed >> 29)).sum(-1, keepdim=True))[0, :, 0]
        if odd := [int(worker) for worker in (sums != sums[0]).nonzero()]:
            raise RuntimeError(f"worker {odd[0]}'s parameters differ from worker 0's after {int(self._exchanges)} steps: "
                               "somebody changes them, or computes otherwise")  # fmt: skip

    def agree(self, values: Tensor) -> Tensor:
        """The mean over all workers."""
        return self.world.mean(values)

    # --- states ------------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> dict[str, Tensor]:
        """Estimates of the mean gradient, and how many exchanges there were."""
        kinds = {kind: states for kind, states in self.memory.now.items() if kind not in self._local_kinds}
        return kinds | {"exchanges": self._exchanges}

    @property
    def local(self) -> dict[str, Tensor]:
        """Each worker's errors and estimates."""
        return {kind: self.memory.now[kind] for kind in self._local_kinds}

    def adopt(self, saved: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over errors and estimates of another number of workers: their means, on which alone the mean gradient depends."""
        for kind in self.feedback.local:
            mean = self.feedback.means.get(kind)
            everybody = torch.stack([each[kind][0] for each in saved]).mean(0) if mean is None else self.memory.now[mean]
            self.memory.now[kind].copy_(everybody)
        if SERVER_ERROR in saved[0] and not self.feedback.means:  # estimates that begin as their mean have no such error
            for unit, whole in zip(
                self.layout.units, joined(self.layout.units, [each[SERVER_ERROR][0] for each in saved]), strict=True
            ):
                self._adopt_server_error(self.memory.of(unit)[0], part_of(unit, self.world.size), whole)

    def _adopt_server_error(self, state: Mapping[str, Tensor], part: int, whole: Tensor) -> None:
        """Cut a parameter's ``[d]`` anew; if payloads are gathered now, every worker adds it to its own error."""
        if SERVER_ERROR in state:
            state[SERVER_ERROR].copy_(cut(whole, part, self.world.size)[self.world.positions])
        else:
            state["error"].add_(whole.to(state["error"].device))

    @property
    def temporary_copies(self) -> float:
        """The states to come, what is proposed, its magnitudes and what it decodes to."""
        return len(self._local_kinds) + 3.0

    @property
    def description(self) -> str:
        """Compressor, reducer and feedback, and what a step sends."""
        sent = self.exchange.wire_bytes(self.layout.units, self.world.size)
        ddp = all_reduce_wire_bytes(4 * self.layout.numel, self.world.size)
        names: dict[type, str] = {Gather: "gathered", TwoPhase: "averaged in two phases"}
        how = names.get(type(self.exchange), "all-reduced")
        share = f", {100 * sent / ddp:.3g}% of DDP's" if ddp else ""
        advice = "; for SGD: Adam and Muon fall far behind with so little" if self.compressor.nominal_delta < 0.5 else ""
        return f"{self.compressor} {how}, {self.feedback}: {sent:,} bytes per step and worker{share}{advice}"


def check_reducer(compressor: Compressor | PowerSGD, reducer: ReducerName) -> None:
    """Raise ValueError if payloads cannot be averaged that way."""
    if reducer not in get_args(ReducerName):
        raise ValueError(f"reducer must be one of {', '.join(get_args(ReducerName))}, got {reducer!r}")
    if isinstance(compressor, PowerSGD) and reducer not in ("auto", "all_reduce"):
        raise ValueError(f"reducer {reducer} is not for PowerSGD, whose factors are averaged by all-reduce: take auto")
    if reducer == "all_reduce" and not compressor.is_linear:
        raise ValueError(
            f"reducer all_reduce sums payloads, and those of {type(compressor).__name__} cannot be summed: two workers keep or "
            "scale different entries; take gather, two_phase or auto"
        )


def choose(
    compressor: Compressor | PowerSGD, feedback: Feedback, reducer: ReducerName, layout: Layout, num_workers: int
) -> Exchange:
    """The reducer of that name; for ``auto`` the one that sends fewer bytes."""
    if isinstance(compressor, PowerSGD):
        return compressor
    if reducer == "all_reduce" or (reducer == "auto" and compressor.is_linear):
        return AllReduce()
    two_phase = TwoPhase(compressor, remembers=type(feedback) is not Feedback)
    both: dict[str, Exchange] = {"gather": Gather(compressor), "two_phase": two_phase}
    if reducer != "auto":
        return both[reducer]
    return min(both.values(), key=lambda each: each.wire_bytes(layout.units, num_workers))


@strategies.register
class CompressedConfig(GradientConfig):
    """The gradients' mean, compressed, with error feedback."""

    name: Literal["compressed"] = "compressed"
    compressor: SerializeAsAny[CompressorConfig] = BlockTopKConfig()
    """What becomes of a gradient."""
    feedback: SerializeAsAny[FeedbackConfig] = EF14Config()
    """What becomes of the rest."""
    reducer: ReducerName = "auto"
    """gather: everybody receives everybody's payload; two_phase: every worker averages one part, so that what a worker sends
    does not grow with their number; all_reduce: for what can be summed; auto: whichever sends fewer bytes."""
    warmup_steps: int = Field(0, ge=0)
    """Steps that are not compressed, at the start."""
    checksum_every: int = Field(0, ge=0)
    """Steps between comparisons of the workers' parameters, 8 bytes each; 0: never."""

    @field_validator("feedback")
    @classmethod
    def _fits_the_compressor(cls, value: FeedbackConfig, info: ValidationInfo) -> FeedbackConfig:
        if (compressor := info.data.get("compressor")) is not None:
            value.build().fitted_to(compressor.build())
        return value

    @field_validator("reducer")
    @classmethod
    def _can_reduce(cls, value: ReducerName, info: ValidationInfo) -> ReducerName:
        if (compressor := info.data.get("compressor")) is not None:
            check_reducer(compressor.build(), value)
        return value

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


compressors.choose_in(CompressedConfig, "compressor")
feedbacks.choose_in(CompressedConfig, "feedback")
