"""Local updates: workers train alone for a round, then exchange what they have changed, perhaps while the next round goes on.

The engine keeps what all methods have: the anchor, from which rounds begin and which is equal on all workers; the outer momentum;
one reduction in flight for each fragment, on a lane of its own; the schedule of a round; and all of that in checkpoints, a
reduction in flight included. A method says what happens where a round closes, and where its reduction lands.

What is exchanged is the delta: parameters at the start minus parameters at the end of the round, in float32. Where all workers
began at the same anchor its mean is as good as that of the parameters, rounds less, and can be compressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, TypedDict

import torch
from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator
from torch import Tensor

from disttrain.compression.base import CompressorConfig
from disttrain.compression.feedback import EF14Config, NoFeedbackConfig
from disttrain.compression.mean import CompressedMean, CompressedMeanConfig
from disttrain.compression.quantize import IdentityConfig
from disttrain.compression.reduce import Dense
from disttrain.parameters import Layout
from disttrain.strategies.agreeing import AgreesLate
from disttrain.strategies.base import StrategyConfig
from disttrain.strategies.local_updates.deltas import DeltaMean
from disttrain.strategies.local_updates.fragments import Fragment, fragments_of
from disttrain.strategies.local_updates.outer import OuterStep
from disttrain.worlds.groups import Groups, check_division
from disttrain.worlds.in_flight import InFlight
from disttrain.worlds.traffic import all_reduce_wire_bytes
from disttrain.worlds.world import Lane, World

Inner = Literal["ddp", "zero1", "fsdp"]


class Common(TypedDict, total=False):
    """Settings of :class:`LocalUpdates` that every method passes on."""

    warmup_steps: int
    compression: CompressedMean | None
    group_size: int
    inner: Inner
    find_unused_parameters: bool


class LocalUpdates(AgreesLate):
    """The engine; a subclass defines :meth:`close` and :meth:`land`.

    Args:
        period: τ, local steps in a round.
        outer: what becomes of the mean delta.
        delay: local steps from a round's end to the landing of its exchange, from 0 to ``period``.
        fragments: parts of the parameters, whose rounds close one after another.
        warmup_steps: local steps at the start in which gradients are averaged instead, as in DDP.
        compression: of the deltas, with error feedback; None: they are sent as they are.
        group_size: workers of a replica group: they average gradients in every step, and have one delta.
        inner: what members of a group divide; with ``fsdp`` the parameters are this worker's shards.
        find_unused_parameters: where gradients are averaged, a parameter may go without one in a step.

    Raises:
        ValueError: if these do not fit together; in :meth:`begin`, if there are fewer layers than fragments.
    """

    one_result = True
    groups: Groups | None = None

    def __init__(
        self,
        period: int,
        outer: OuterStep,
        delay: int = 0,
        fragments: int = 1,
        warmup_steps: int = 0,
        compression: CompressedMean | None = None,
        group_size: int = 1,
        inner: Inner = "ddp",
        find_unused_parameters: bool = False,
    ) -> None:
        if period < 1:
            raise ValueError(f"period must be at least 1, got {period}")
        if not 0 <= delay <= period:
            raise ValueError(f"delay must be from 0 to period={period}, for one exchange is in flight at a time, got {delay}")
        if warmup_steps < 0 or fragments < 1:
            raise ValueError(f"warmup_steps must be at least 0 and fragments at least 1, got {warmup_steps} and {fragments}")
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        if group_size > 1 and compression is not None:
            raise ValueError(
                f"groups cannot compress deltas yet: with group_size={group_size} take compressor=identity and reducer=auto"
            )
        if inner == "fsdp":
            refuse_to_shard(outer, warmup_steps, fragments)
        self.period, self.outer, self.delay, self.group_size, self.sharded = period, outer, delay, group_size, inner == "fsdp"
        self.warmup_steps, self._num_fragments, self._compression = warmup_steps, fragments, compression
        self.find_unused_parameters = find_unused_parameters
        if not self.sharded and (warmup_steps or group_size > 1):
            self.reducer = Dense()

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Lay out the states; the first round begins here, or after the warm-up."""
        super().begin(x, layout, world, seed)
        self.fragments = fragments_of(layout, self._num_fragments, self.period)
        self.lane = world.lane("deltas")
        if self.group_size > 1 and self.groups is None:  # they are there where parameters had to be sharded first
            self.groups = Groups(world, self.group_size)
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.anchor = x[:1].to(self.dtype, copy=True)
        self.deltas = DeltaMean(self._compression, self.fragments, world, self.groups, self.sharded, self.anchor, seed)
        self.momentum = torch.zeros_like(self.anchor) if self.outer.momentum else self.anchor.new_zeros(1, 0)
        self._steps = torch.zeros(1, 1, dtype=torch.int64)
        self._flights: list[InFlight | None] = [None for _ in self.fragments]
        self._landed: Tensor | None = None  # what came of the flights that a checkpoint had to wait for
        self._has_landed = torch.zeros(1, len(self.fragments), dtype=torch.bool)
        self._clipped = self.anchor.new_zeros(1, 1)
        self._seconds_in_flight = self._seconds_waited = 0.0

    # --- the schedule ------------------------------------------------------------------------------------------------

    @property
    def gradients_due(self) -> bool:
        """In the warm-up among all workers, and later inside groups."""
        return self.reduces_gradients and (self.steps < 0 or self.groups is not None)

    @property
    def gradient_lanes(self) -> Sequence[Lane]:
        """Those inside groups, after the warm-up."""
        return () if self.groups is None or self.steps < 0 else self.groups.steps

    @property
    def num_replicas(self) -> int:
        """Groups, or workers where each is its own: how many deltas there are."""
        return self.world.size // self.group_size

    @property
    def agrees_late(self) -> bool:
        """After the warm-up, in which workers meet in every step anyway."""
        return self.steps >= 0

    @property
    def steps(self) -> int:
        """Local steps since the warm-up; negative in it."""
        return int(self._steps) - self.warmup_steps

    def before_step(self) -> bool:
        """The first round begins where the parameters are by now: somebody may have loaded others since :meth:`begin`."""
        if self.steps == 0:
            self.open()
        return True

    def after_step(self) -> None:
        """Land and close what is due."""
        self._steps += 1
        for fragment in self.fragments:
            due = 0 < self.delay < min(self.period, self.steps)
            if due and self._since_close(fragment, self.steps - self.delay) == 0:
                self.land(fragment)
            if self.steps > 0 and self._since_close(fragment, self.steps) == 0:
                self.close(fragment)

    def _since_close(self, fragment: Fragment, steps: int) -> int:
        """Local steps that the round of a fragment is old, after ``steps`` of them."""
        return (steps + fragment.lead) % self.period if steps + fragment.lead >= self.period else steps

    def open(self) -> None:
        """The first round begins: all workers' parameters are equal."""
        self.anchor.copy_(self.x[:1])

    def close(self, fragment: Fragment) -> None:
        """A fragment's round is full: post it. With no delay it lands here too; with one of a whole round, the last one does."""
        raise NotImplementedError(f"{type(self).__name__} must define close()")

    def land(self, fragment: Fragment) -> None:
        """A fragment's exchange is due, in the middle of a round."""
        raise NotImplementedError(f"{type(self).__name__} must define land()")

    # --- the exchange ------------------------------------------------------------------------------------------------

    def post(self, fragment: Fragment, delta: Tensor) -> None:
        """Start to average a fragment's deltas ``[L, d_f]``, which are lent until :meth:`take`."""
        assert self._flights[fragment.number] is None, "one exchange in flight at a time"
        if not self._has_landed.any():
            self._landed = None  # no checkpoint needs it any more
        self._flights[fragment.number] = self.lane.start(self.deltas.average, self.lane, fragment, delta)

    def take(self, fragment: Fragment) -> Tensor | None:
        """The mean delta ``[1, d_f]`` that is due; None if nothing was posted."""
        if bool(self._has_landed[0, fragment.number]):
            assert self._landed is not None
            mean = fragment.of(self._landed).clone()
            self._has_landed[0, fragment.number] = False
            if not self._has_landed.any():
                self._landed = None
            return mean
        flight, self._flights[fragment.number] = self._flights[fragment.number], None
        return None if flight is None else self._receive(fragment, flight)

    def _receive(self, fragment: Fragment, flight: InFlight) -> Tensor:
        mean: Tensor
        mean, finite = flight.take()
        if not finite:
            raise RuntimeError(f"diverged: after {int(self._steps)} steps some worker's parameters are not finite any more")
        self.deltas.landed(fragment)
        self._seconds_waited += flight.waited_seconds
        self._seconds_in_flight += flight.seconds
        return mean

    def average_now(self, fragment: Fragment, delta: Tensor) -> Tensor:
        """The mean of deltas ``[L, d_f]``, waited for: ``[1, d_f]``."""
        self.post(fragment, delta)
        mean = self.take(fragment)
        assert mean is not None
        return mean

    def apply(self, fragment: Fragment, mean: Tensor) -> Tensor:
        """The outer step of a fragment's anchor with a mean delta ``[1, d_f]``, which is used up; returns its direction."""
        anchor = fragment.of(self.anchor)
        momentum = fragment.of(self.momentum) if self.outer.momentum else self.momentum
        direction, self._clipped = self.outer.step_(anchor, momentum, mean)
        if len(fragment.ranges) > 1:  # else these were views
            fragment.put(self.anchor, anchor)
            if self.outer.momentum:
                fragment.put(self.momentum, momentum)
        return direction

    def length(self, x: Tensor) -> Tensor:
        """The Euclidean lengths ``[R, 1]`` of vectors ``[R, d_f]``; with shards, of those that a group has together."""
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if not self.sharded:
            return norm
        assert self.groups is not None
        return (self.groups.own_steps.mean(norm.square()) * self.group_size).sqrt()

    # --- what leaves the strategy ------------------------------------------------------------------------------------

    def evaluation(self) -> Tensor:
        """The anchor; before the first round the parameters themselves, which are equal."""
        return self.x[:1] if self.steps <= 0 else self.anchor.to(self.x.dtype)

    def finish(self) -> Tensor:
        """Land what is in flight, close the rounds that are open, and return the anchor; training cannot go on after that."""
        if self.steps <= 0:
            return self.x[:1]
        for fragment in self.fragments:
            self.drain(fragment, self._since_close(fragment, self.steps))
        return self.evaluation()

    def drain(self, fragment: Fragment, steps: int) -> None:
        """Land a fragment's exchange, and close its round, ``steps`` local steps old, without delay."""
        raise NotImplementedError(f"{type(self).__name__} must define drain()")

    @property
    def metrics(self) -> dict[str, float]:
        """The anchor's length; how long exchanges took since the start of this process, and which share of that was hidden.

        Not the latter two on a GPU, where the host's clock does not see the kernels.
        """
        values = {"fraction_clipped": float(self._clipped)}
        if not self.sharded:  # nobody has the whole anchor
            values["anchor_norm"] = float(torch.linalg.vector_norm(self.evaluation()))
        if self._seconds_in_flight > 0 and self.x.device.type != "cuda":
            values["communication_seconds"] = self._seconds_in_flight
            values["overlap_ratio"] = max(0.0, 1 - self._seconds_waited / self._seconds_in_flight)
        return values

    # --- states ------------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> dict[str, Tensor]:
        """Anchor, outer momentum, how many steps were made, and what has landed early; waits for what is in flight."""
        return {} if self.sharded else self._everything()

    def _everything(self) -> dict[str, Tensor]:
        self._settle()
        states = {"anchor": self.anchor, "momentum": self.momentum, "steps": self._steps} | self.deltas.shared
        if self.delay:
            self._landed = torch.zeros_like(self.anchor) if self._landed is None else self._landed
            states |= {"landed": self._landed, "has_landed": self._has_landed}
        return states

    def _settle(self) -> None:
        """Wait for all that is in flight, and keep it for when it is due."""
        for fragment in self.fragments:
            if self._flights[fragment.number] is None:
                continue
            if self._landed is None:
                self._landed = torch.zeros_like(self.anchor)
            mean = self.take(fragment)
            assert mean is not None
            fragment.put(self._landed, mean)
            self._has_landed[0, fragment.number] = True

    @property
    def local(self) -> dict[str, Tensor]:
        """What error feedback keeps of the deltas; of shards, everything."""
        return self.deltas.local | (self._everything() if self.sharded else {})

    @property
    def temporary_copies(self) -> float:
        """The deltas, on their way."""
        return self.deltas.temporary_copies

    @property
    def description(self) -> str:
        """What a round is, and what it sends."""
        numel = self.layout.numel * (self.group_size if self.sharded else 1)
        sent, ddp = self.deltas.wire_bytes, self.period * all_reduce_wire_bytes(4 * numel, self.world.size)
        share = f", {100 * sent / ddp:.3g}% of DDP's" if ddp else ""
        how = "waited for" if self.delay == 0 else f"landing {self.delay} local steps later"
        inside = f"gradients inside groups of {self.group_size} in every step; " if self.group_size > 1 else ""
        between = f"{inside}every {self.period} local steps, {self.deltas.description}{how}"
        return f"{between}: {sent:,} bytes per round and worker{share}"


def refuse_to_shard(outer: OuterStep, warmup_steps: int, fragments: int) -> None:
    """Raise ValueError for settings that need more than this worker's shards."""
    if warmup_steps:
        raise ValueError(f"inner=fsdp averages gradients inside groups only: warmup_steps={warmup_steps} must be 0")
    if fragments > 1:
        raise ValueError(f"inner=fsdp exchanges all shards at once: fragments={fragments} must be 1")
    if outer.clip.threshold is not None and outer.clip.mode == "norm":
        raise ValueError("inner=fsdp cannot clip by the norm of what no worker has as a whole: take clip_mode=value")


class LocalUpdatesConfig(CompressedMeanConfig, StrategyConfig):
    """What all methods have; a ``compressor`` other than ``identity`` is for the deltas."""

    period: int = Field(48, ge=1)
    """τ: local steps in a round."""
    warmup_steps: int = Field(0, ge=0)
    """Steps at the start in which gradients are averaged, as under ddp."""
    compressor: SerializeAsAny[CompressorConfig] = IdentityConfig()
    """What becomes of a delta; what is left of it is fed back into the next."""
    group_size: int = Field(1, ge=1)
    """Workers of a replica group: consecutive ranks that average gradients in every step, as under ddp, while groups exchange
    deltas after rounds, each member a part of them; 1: every worker is alone."""
    inner: Inner = "ddp"
    """What members of a group divide: ddp: only the batch; zero1: the optimizer's state too (arXiv 1910.02054), parameter by
    parameter, and of muon, soap and cosmos matrix by matrix (their AdamW's state stays whole); fsdp: parameters and gradients too
    (arXiv 2304.11277), each member then exchanging its shards alone."""

    @field_validator("inner")
    @classmethod
    def _shards_among_several(cls, value: Inner, info: ValidationInfo) -> Inner:
        if value != "ddp" and info.data.get("group_size") == 1:
            raise ValueError(f"{value} shards inside replica groups, and group_size=1 has none: set group_size, or take ddp")
        return value

    find_unused_parameters: bool = False
    """Whether a parameter may go without a gradient in a step of the warm-up, or of a group; workers alone allow it."""

    @model_validator(mode="after")
    def _can_have_groups(self) -> Self:
        if self.find_unused_parameters and not (self.warmup_steps or (self.group_size > 1 and self.inner != "fsdp")):
            raise ValueError(
                "find_unused_parameters=true is for gradients that DDP averages, and here it averages none: there must be "
                "warmup_steps, or a group_size above 1 with inner=ddp or zero1"
            )
        if self.group_size > 1:
            self.build()  # which refuses what cannot
        return self

    def check_world(self, world_size: int) -> None:
        """Groups must be equal."""
        check_division(world_size, self.group_size)

    @property
    def common(self) -> Common:
        """Arguments that all methods have."""
        nothing_left = isinstance(self.compressor, IdentityConfig) and isinstance(self.feedback, EF14Config | NoFeedbackConfig)
        as_it_is = nothing_left and self.reducer in ("auto", "all_reduce")
        compression = None if as_it_is else self.build_mean()
        return {
            "warmup_steps": self.warmup_steps,
            "compression": compression,
            "group_size": self.group_size,
            "inner": self.inner,
            "find_unused_parameters": self.find_unused_parameters,
        }

    def check_steps(self, steps: int) -> None:
        """At least one round must be complete."""
        if steps < self.warmup_steps + self.period:
            warmup = f" after strategy.warmup_steps={self.warmup_steps}" if self.warmup_steps else ""
            raise ValueError(
                f"steps={steps} is less than a round: workers would first exchange anything after strategy.period={self.period} "
                f"steps{warmup}; take a shorter period, or strategy.name=local"
            )

    def check_rounds(self, steps: int, warmup_rounds: int, waiting: str) -> None:
        """Not all rounds may be warm-up; ``waiting`` is the strategy that always waits."""
        if steps <= (waited := self.warmup_steps + warmup_rounds * self.period):
            raise ValueError(
                f"steps={steps} is all warm-up: strategy.warmup_rounds={warmup_rounds} of strategy.period={self.period} end "
                f"at step {waited}; take fewer, or strategy.name={waiting}, which always waits"
            )
