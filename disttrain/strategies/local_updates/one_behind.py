"""Methods whose exchange has a whole round to arrive: it is posted where a round closes and lands where the next one does.

The anchor A and the outer momentum m only ever see what has landed, so they are a round behind, and equal on all workers. Methods
differ in where a worker goes on from while its newest delta d, of the round that has just closed, is on its way:

    CO2             A                        the fresh delta is not seen until it lands (arXiv 2401.16265)
    Eager DiLoCo    A − α (d/N + β c)        1/N of it at once; c ← β c + d/N is the worker's own momentum (arXiv 2502.12996)
    CoCoD-SGD       A − d                    all of it (arXiv 1906.12043)
    ours            A − α clip(β m + d)      all of it, as if it were the mean

In the last two the workers' mean is where it would be without any delay (of CoCoD, local SGD's; of the last, SlowMo's), as far as
steps are linear; so momentum does not meet a delay, which is what makes CO2 unstable. What is left of the delay is that workers
are apart by a round's deltas when a round begins.

Eager's own formula, an outer step with the last mean delta in which the worker's part is replaced by its fresh one, is the one
above: its sums telescope.
"""

from __future__ import annotations

from typing import Literal, Unpack, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor

from disttrain.parameters import Layout
from disttrain.strategies.base import strategies
from disttrain.strategies.local_updates.engine import Common, LocalUpdates, LocalUpdatesConfig
from disttrain.strategies.local_updates.fragments import Fragment
from disttrain.strategies.local_updates.outer import Clip, ClipMode, OuterStep
from disttrain.strategies.local_updates.penalty import Penalty, PenaltyName, is_stable
from disttrain.worlds.world import World

Fresh = Literal["wait", "share", "keep"]


class OneBehind(LocalUpdates):
    """Outer steps with deltas that land a whole round later.

    Args:
        period: τ, local steps in a round.
        outer: what becomes of the mean delta once it has landed.
        fresh: what a worker does with its own newest delta meanwhile: ``wait`` (CO2), ``share``: 1/N of it counts at once (Eager
            DiLoCo), ``keep``: all of it does, through the outer step (CoCoD-SGD, and with momentum ours).
        penalty: how much less a stale delta counts.
        warmup_rounds: rounds at the start whose exchange is waited for.
        common: of :class:`LocalUpdates`.

    Raises:
        ValueError: if these do not fit together.
    """

    def __init__(
        self,
        period: int,
        outer: OuterStep,
        fresh: Fresh = "wait",
        penalty: Penalty | None = None,
        warmup_rounds: int = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(period, outer, delay=period, **common)
        if fresh not in get_args(Fresh):
            raise ValueError(f"fresh must be one of {', '.join(get_args(Fresh))}, got {fresh!r}")
        if warmup_rounds < 0:
            raise ValueError(f"warmup_rounds must not be negative, got {warmup_rounds}")
        self.fresh, self.penalty, self.warmup_rounds = fresh, penalty or Penalty(), warmup_rounds

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Beside the engine's states: where each worker's round began, if not at the anchor."""
        super().begin(x, layout, world, seed)
        apart = len(x) if self.fresh != "wait" else 0
        self.start = self.anchor.expand(apart, -1).clone()
        own = apart if self.fresh == "share" and self.outer.momentum else 0
        self.own_momentum = torch.zeros_like(self.anchor).expand(own, -1).clone()
        self._moved = self.anchor.new_zeros(1, 1)  # how long the last outer step was
        self._penalty = self.anchor.new_ones(1, 1)

    def open(self) -> None:
        """All begin at the same point."""
        super().open()
        self.start.copy_(self.anchor.expand_as(self.start))

    def close(self, fragment: Fragment) -> None:
        """Post this round, apply the last one, and go on from there."""
        landed, delta = self.take(fragment), self._begin - self.x
        self.post(fragment, delta)
        if landed is not None:
            self._apply_stale(fragment, landed)
        else:
            self._moved.zero_()  # the anchor waits for its first delta
        if self.steps <= self.warmup_rounds * self.period:
            mean = self.take(fragment)
            assert mean is not None
            self._apply(fragment, mean)
            self.x.copy_(self.anchor)
        else:
            self.x.copy_(self._next_start(delta))
        self.start.copy_(self.x[: len(self.start)])

    def drain(self, fragment: Fragment, steps: int) -> None:
        """Land the last round, then the open one, each with its own outer step."""
        landed, delta = self.take(fragment), self._begin - self.x
        if landed is not None:
            self._apply_stale(fragment, landed)
        else:
            self._moved.zero_()
        if steps:
            warming_up = self.steps < self.warmup_rounds * self.period
            (self._apply if warming_up else self._apply_stale)(fragment, self.average_now(fragment, delta))

    @property
    def _begin(self) -> Tensor:
        """Where the workers' rounds began, ``[L or 1, d]``, in the precision of the live parameters."""
        return self.start if len(self.start) else self.anchor.to(self.x.dtype).to(self.dtype)

    def _apply_stale(self, fragment: Fragment, mean: Tensor) -> None:
        self._penalty.copy_(self.penalty(self._moved, lambda: self.length(mean), self.outer))
        self._apply(fragment, mean if self.penalty.name == "none" else mean.div_(self._penalty))

    def _apply(self, fragment: Fragment, mean: Tensor) -> None:
        self._moved.copy_(self.outer.lr * self.length(self.apply(fragment, mean)))

    def _next_start(self, delta: Tensor) -> Tensor:
        """Where the workers go on from, ``[L or 1, d]``, while ``delta [L, d]`` is on its way."""
        if self.fresh == "wait":
            return self.anchor
        if self.fresh == "keep":
            fresh = delta if self.penalty.name == "none" else delta / self._penalty
            return self.anchor - self.outer(fresh, self.momentum).move
        step = self.outer(delta / self.num_replicas, self.own_momentum)
        if len(self.own_momentum):
            self.own_momentum.copy_(step.momentum)
        return self.anchor - step.move

    @property
    def temporary_copies(self) -> float:
        """Where workers go on from, too, and on the way there their own outer step."""
        return super().temporary_copies + {"wait": 0.0, "keep": 2.0, "share": 3.0}[self.fresh]

    @property
    def warning(self) -> str:
        """If late deltas may make the anchor diverge, with the numbers."""
        penalty = self.penalty.expected(self.outer)
        if self.fresh != "wait" or is_stable(self.outer, penalty):
            return ""
        alpha, beta = self.outer.lr, self.outer.momentum
        return (
            "outer steps with deltas that are a round late converge only if ακ/Λ < 1 − β, and κ is near 1 where rounds are long: "
            f"here α/Λ = {alpha:g}/{penalty:.3g} = {alpha / penalty:.3g} and 1 − β = {1 - beta:.3g}; take a smaller "
            "outer_momentum or outer_lr, or penalty=stable"
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The penalty too, and how long the last outer step was."""
        return super().metrics | {"penalty": float(self._penalty), "outer_step_norm": float(self._moved)}

    @property
    def shared(self) -> dict[str, Tensor]:
        """The length of the last outer step too, and the last penalty."""
        return super().shared | {"moved": self._moved, "penalty": self._penalty}

    @property
    def local(self) -> dict[str, Tensor]:
        """Where each worker's round began, and its own momentum."""
        states = {"start": self.start, "own_momentum": self.own_momentum}
        return super().local | {name: state for name, state in states.items() if len(state)}


@strategies.register
class CO2Config(LocalUpdatesConfig):
    """SlowMo with the whole exchange hidden behind the next round, and a penalty for what is stale (arXiv 2401.16265)."""

    name: Literal["co2"] = "co2"
    outer_lr: float = Field(1.0, gt=0)
    """α."""
    outer_momentum: float = Field(0.2, ge=0, lt=1)
    """β; what is stable without delay need not be here."""
    penalty: PenaltyName = "gap"
    """Λ, which divides a stale delta: none, constant (penalty_value), gap (how far the anchor moved), stable (from α and β)."""
    penalty_value: float | None = Field(None, ge=1)
    """Λ of penalty=constant."""
    clip: float | None = Field(None, gt=0)
    """φ: a limit for the outer momentum, in the unit of parameters; null: none."""
    clip_mode: ClipMode = "value"
    """value: for every entry; norm: for the Euclidean length."""
    warmup_rounds: int = Field(0, ge=0)
    """Rounds at the start whose exchange is waited for."""

    def check_steps(self, steps: int) -> None:
        """Rounds that are not waited for, too."""
        super().check_steps(steps)
        self.check_rounds(steps, self.warmup_rounds, "slowmo")

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> CO2Config:
        if (self.penalty == "constant") != (self.penalty_value is not None):
            raise ValueError(
                f"penalty_value and penalty=constant go together, got penalty={self.penalty} and {self.penalty_value}"
            )
        if self.clip is None and self.clip_mode != "value":
            raise ValueError(f"clip_mode={self.clip_mode} does nothing without clip")
        return self

    def build(self) -> OneBehind:
        """The strategy itself."""
        outer = OuterStep(self.outer_lr, self.outer_momentum, clip=Clip(self.clip, self.clip_mode))
        penalty = Penalty(self.penalty, self.penalty_value or 1.0)
        return OneBehind(self.period, outer, "wait", penalty, self.warmup_rounds, **self.common)


@strategies.register
class EagerDiLoCoConfig(LocalUpdatesConfig):
    """DiLoCo with the whole exchange hidden, and each worker's own part of the mean never stale (arXiv 2502.12996)."""

    name: Literal["eager_diloco"] = "eager_diloco"
    outer_lr: float = Field(0.7, gt=0)
    """α."""
    outer_momentum: float = Field(0.5, ge=0, lt=1)
    """β, Nesterov's."""

    def build(self) -> OneBehind:
        """The strategy itself."""
        outer = OuterStep(self.outer_lr, self.outer_momentum, nesterov=True)
        return OneBehind(self.period, outer, "share", **self.common)


@strategies.register
class CoCoDSGDConfig(LocalUpdatesConfig):
    """Local SGD with the whole exchange hidden: the last mean, and all of the worker's own progress since (arXiv 1906.12043)."""

    name: Literal["cocod_sgd"] = "cocod_sgd"
    outer_momentum: float = Field(0.0, ge=0, lt=1)
    """β, heavy ball's: 0 is the paper's method; with momentum the workers' mean is SlowMo's."""

    def build(self) -> OneBehind:
        """The strategy itself."""
        return OneBehind(self.period, OuterStep(momentum=self.outer_momentum), "keep", **self.common)
