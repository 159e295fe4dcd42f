"""The workers' mean, compressed, with error feedback: what strategies do to gradients in every step, or to deltas after a round.

Which compressor, which feedback and which way of averaging are parts of their own; here they meet. Every worker sees the same
payloads or means, so what comes out is equal on all workers bit by bit without ever being compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from pydantic import SerializeAsAny, ValidationInfo, field_validator
from torch import Tensor

from disttrain.component import Config
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
from disttrain.compression.parameterwise import draw_keys
from disttrain.compression.power_sgd import PowerSGD
from disttrain.compression.sparse import BlockTopKConfig
from disttrain.parameters import Layout, Unit
from disttrain.worlds.world import World

ReducerName = Literal["auto", "gather", "two_phase", "all_reduce"]


class CompressedMean:
    """Averages some parameters' vectors, and remembers what payloads leave out.

    Args:
        compressor: what becomes of a vector.
        feedback: what becomes of the rest; None: EF14.
        reducer: ``gather``, ``two_phase`` or ``all_reduce``; ``auto``: whichever sends fewer bytes.

    Raises:
        ValueError: if they do not work together; in :meth:`begin`, if the feedback is for another number of workers.
    """

    def __init__(
        self, compressor: Compressor | PowerSGD, feedback: Feedback | None = None, reducer: ReducerName = "auto"
    ) -> None:
        self.compressor, self.reducer_name = compressor, reducer
        self.feedback = (EF14() if feedback is None else feedback).fitted_to(compressor)
        check_reducer(compressor, reducer)

    def begin(self, layout: Layout, world: World, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        """Lay out the states of these parameters, and choose the reducer; vectors will be of ``dtype`` or less precise."""
        self.layout, self.world, self.seed = layout, world, seed
        self.exchange = choose(self.compressor, self.feedback, self.reducer_name, layout, world.size)
        weights = self.feedback.weights(world.size)
        self._own_weights = None if (weights == 1).all() else weights[world.positions, None].to(device)
        self.weights = weights.to(device)
        local, shared = self.feedback.local + self.exchange.local, self.feedback.shared + self.exchange.shared
        rows = dict.fromkeys(local, len(world.ids)) | dict.fromkeys(shared, 1)
        own = self.feedback.local + self.feedback.shared
        sizes = {u.name: dict.fromkeys(own, u.numel) | dict(self.exchange.sizes(u, world.size)) for u in layout.units}
        self._dtype = torch.promote_types(dtype, torch.float32)
        self.memory = Memory(layout, sizes, rows, self._dtype, device)
        self.exchanges = torch.zeros(1, 1, dtype=torch.int64)  # that were committed
        for number, unit in enumerate(layout.units):
            self.exchange.start(number, self.memory.of(unit)[0], seed)
        self.local_kinds = local
        self._numbers = {unit.name: number for number, unit in enumerate(layout.units)}

    # --- an exchange -------------------------------------------------------------------------------------------------

    def compress(
        self, lane: World, units: Sequence[Unit], vectors: Sequence[Tensor], may_be_unused: bool = False
    ) -> tuple[list[Tensor], list[Outcome]]:
        """The means ``[1, d_unit]`` of vectors ``[L, d_unit]``; the states change when :meth:`advance` is called.

        Args:
            lane: where to exchange.
            units: some of the layout's.
            vectors: theirs.
            may_be_unused: a parameter whose vectors are zero on all workers is left as it is, and nothing is lost of it.
        """
        proposals = [self._propose(unit, x, may_be_unused) for unit, x in zip(units, vectors, strict=True)]
        outcomes = self.exchange.run(lane, proposals, self.weights)
        means = []
        for proposal, outcome in zip(proposals, outcomes, strict=True):
            if not may_be_unused or outcome.used:
                means.append(self.feedback.commit(outcome, proposal.old, proposal.new))
            else:  # DDP leaves such a parameter without a gradient, so what its payloads held would be lost
                self.memory.keep(proposal.unit)
                means.append(torch.zeros_like(outcome.mean))
        return means, outcomes

    def average(self, lane: World, units: Sequence[Unit], vectors: Sequence[Tensor]) -> tuple[list[Tensor], list[Outcome]]:
        """The same without compression: the plain mean, from which the feedback's states begin."""
        proposals = [Proposal(unit, x, None, None, *self.memory.of(unit)) for unit, x in zip(units, vectors, strict=True)]
        outcomes = AllReduce().run(lane, proposals, torch.ones_like(self.weights))
        for x, proposal, outcome in zip(vectors, proposals, outcomes, strict=True):
            self.memory.keep(proposal.unit)  # the exchange's own states
            self.feedback.start(self._weighted(x), outcome.mean, proposal.new)
        return [outcome.mean.clone() for outcome in outcomes], outcomes

    def advance(self) -> None:
        """All parameters' new states are in force."""
        self.memory.advance()
        self.exchanges += 1

    def _propose(self, unit: Unit, x: Tensor, may_be_unused: bool) -> Proposal:
        old, new = self.memory.of(unit)
        used = x.ne(0).any(-1) if may_be_unused else None
        proposed = self.feedback.propose(self._weighted(x), old, new)
        return Proposal(unit, proposed, self._keys(unit, x.device) if self.exchange.is_random else None, used, old, new)

    def _weighted(self, x: Tensor) -> Tensor:
        """A weighted worker's vector, divided by its weight."""
        return x if self._own_weights is None else (x / self._own_weights).to(self._dtype)

    def _keys(self, unit: Unit, device: torch.device) -> Tensor:
        return draw_keys(self.seed, self._numbers[unit.name], int(self.exchanges), self.world.ids).to(device)

    # --- states ------------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> dict[str, Tensor]:
        """Estimates of the mean, and how many exchanges there were."""
        kinds = {kind: states for kind, states in self.memory.now.items() if kind not in self.local_kinds}
        return kinds | {"exchanges": self.exchanges}

    @property
    def local(self) -> dict[str, Tensor]:
        """Each worker's errors and estimates."""
        return {kind: self.memory.now[kind] for kind in self.local_kinds}

    def adopt(self, saved: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over errors and estimates of another number of workers: their means, on which alone the mean depends."""
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

    # --- what it costs -----------------------------------------------------------------------------------------------

    @property
    def wire_bytes(self) -> int:
        """What a worker sends for one exchange of all parameters."""
        return self.exchange.wire_bytes(self.layout.units, self.world.size)

    @property
    def description(self) -> str:
        """Compressor, reducer and feedback."""
        names: dict[type, str] = {Gather: "gathered", TwoPhase: "averaged in two phases"}
        return f"{self.compressor} {names.get(type(self.exchange), 'all-reduced')}, {self.feedback}"

    @property
    def temporary_copies(self) -> float:
        """The states to come, what is proposed, its magnitudes and what it decodes to."""
        return len(self.local_kinds) + 3.0


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


class CompressedMeanConfig(Config):
    """The part of a strategy's config that says how a mean is compressed."""

    compressor: SerializeAsAny[CompressorConfig] = BlockTopKConfig()
    """What becomes of a vector."""
    feedback: SerializeAsAny[FeedbackConfig] = EF14Config()
    """What becomes of the rest."""
    reducer: ReducerName = "auto"
    """gather: everybody receives everybody's payload; two_phase: every worker averages one part, so that what a worker sends
    does not grow with their number; all_reduce: for what can be summed; auto: whichever sends fewer bytes."""

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

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Let every strategy choose from all compressors and feedbacks, those registered later too."""
        super().__pydantic_init_subclass__(**kwargs)
        compressors.choose_in(cls, "compressor")
        feedbacks.choose_in(cls, "feedback")

    def build_mean(self) -> CompressedMean:
        """Not begun."""
        return CompressedMean(self.compressor.build(), self.feedback.build(), self.reducer)
