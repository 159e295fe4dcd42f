"""Learning-rate schedules: what multiplies the base lr at each optimizer update.

A schedule is a pure function of the update's number t and the total, so resuming needs one integer and no state. Phases
are shares of the total: changing ``training.steps`` stretches the whole schedule. With W, S and D the updates at which
warm-up ends, decay starts and decay ends, the general form is

    (t + 1) / W                t < W         t + 1, so that the first update is not wasted
    1                          W ≤ t < S
    m + (1 − m)·g(x)           S ≤ t < D     x = (t − S)/(D − S); g falls from 1 to 0; "exponential" is m^x instead
    m                          D ≤ t         m is minimum_lr_ratio

WSDC (warmup, stable, decay, constant) is named in the report on PLM (arXiv 2503.12167). Its formula and constants were
not obtainable: that the constant phase follows the decay is our reading; parametrisation and defaults are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from disttrain.component import ComponentConfig, Registry

Ratio = Annotated[float, Field(ge=0, le=1)]
Shape = Literal["1-sqrt", "linear", "cosine", "exponential"]

FALL: dict[Shape, Callable[[float], float]] = {
    "1-sqrt": lambda x: 1 - math.sqrt(x),
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}
"""g: from 1 at 0 to 0 at 1."""


class ScheduleConfig(ComponentConfig):
    """Base of all schedules' configs."""

    def multiplier(self, update: int, total_updates: int) -> float:
        """lr / base lr for ``update`` (0-based) of ``total_updates``; skipped steps are no updates."""
        raise NotImplementedError(f"{type(self).__name__} must define multiplier()")


schedules: Registry[ScheduleConfig] = Registry("schedule", default="constant")


@schedules.register
class ConstantConfig(ScheduleConfig):
    """The base lr throughout, after an optional warm-up."""

    name: Literal["constant"] = "constant"
    warmup_ratio: Ratio = 0.0
    """Share of the updates in which lr rises linearly to its base."""

    def multiplier(self, update: int, total_updates: int) -> float:
        """Rises to 1 and stays."""
        return warmed_up(update, round(self.warmup_ratio * total_updates))


@schedules.register
class CosineConfig(ScheduleConfig):
    """Warm-up, then half a cosine down to the minimum (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""

    name: Literal["cosine"] = "cosine"
    warmup_ratio: Ratio = 0.02
    """Share of the updates in which lr rises linearly to its base."""
    minimum_lr_ratio: Ratio = 0.1
    """Where the decay ends, as a share of the base lr."""

    def multiplier(self, update: int, total_updates: int) -> float:
        """Decay starts where warm-up ends."""
        start = round(self.warmup_ratio * total_updates)
        if update < start:
            return warmed_up(update, start)
        return decayed(update, start, total_updates, self.minimum_lr_ratio, "cosine")


class _Phases(ScheduleConfig):
    """Warm-up, plateau, decay and perhaps a constant tail: what WSD and WSDC share."""

    warmup_ratio: Ratio = 0.02
    """Share of the updates in which lr rises linearly to its base."""
    decay_ratio: Ratio = 0.2
    """Share of the updates in which lr falls to the minimum."""
    decay_shape: Shape = "1-sqrt"
    """How it falls: 1-sqrt (steep, then flatter), linear, cosine (flat at both ends) or exponential (equal factors)."""
    minimum_lr_ratio: Ratio = 0.0
    """Where the decay ends, as a share of the base lr."""

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        shares = {"warmup_ratio": self.warmup_ratio, "decay_ratio": self.decay_ratio, "constant_ratio": self._tail()}
        if sum(shares.values()) > 1 + 1e-9:  # 0.7 + 0.2 + 0.1 may exceed 1 by a rounding
            listed = " + ".join(f"{name}={share:g}" for name, share in shares.items() if share)
            raise ValueError(f"{listed} exceeds 1, the whole run; the plateau gets what these leave")
        if self.decay_shape == "exponential" and self.minimum_lr_ratio == 0:
            raise ValueError("decay_shape=exponential never reaches minimum_lr_ratio=0; give it an end, such as 0.01")
        return self

    def multiplier(self, update: int, total_updates: int) -> float:
        """Warm-up, plateau, decay, minimum."""
        end = round((1 - self._tail()) * total_updates)
        start = round((1 - self._tail() - self.decay_ratio) * total_updates)
        if update < start:  # shares that sum to 1 may round past each other: warm-up never reaches into the decay
            return warmed_up(update, min(start, round(self.warmup_ratio * total_updates)))
        return decayed(update, start, end, self.minimum_lr_ratio, self.decay_shape)

    def _tail(self) -> float:
        """Share of the updates that are left at the minimum."""
        return 0.0


@schedules.register
class WSDConfig(_Phases):
    """Warmup, stable, decay: a plateau that can be extended, then a short decay (MiniCPM, arXiv 2404.06395)."""

    name: Literal["wsd"] = "wsd"


@schedules.register
class WSDCConfig(_Phases):
    """WSD with a constant phase at the minimum after the decay; parametrised by us, see the top of this file."""

    name: Literal["wsdc"] = "wsdc"
    minimum_lr_ratio: Ratio = 0.1
    """Where the decay ends, as a share of the base lr; the constant phase runs at it."""
    constant_ratio: Ratio = 0.1
    """Share of the updates, the last ones, that run at the minimum."""

    @model_validator(mode="after")
    def _constant_phase_learns(self) -> Self:
        if self.constant_ratio > 0 and self.minimum_lr_ratio == 0:
            raise ValueError("a constant phase at minimum_lr_ratio=0 trains nothing; raise it, or use schedule.name=wsd")
        return self

    def _tail(self) -> float:
        return self.constant_ratio


def warmed_up(update: int, warmup: int) -> float:
    """Linear from 1/warmup at update 0 to 1 at update ``warmup`` − 1, and 1 from there on."""
    return min(1.0, (update + 1) / warmup) if warmup else 1.0


def decayed(update: int, start: int, end: int, minimum: float, shape: Shape) -> float:
    """From 1 at update ``start``, the least allowed, to ``minimum`` at ``end``; update ``end`` − 1 is still above."""
    if update >= end:
        return minimum
    progress = (update - start) / (end - start)
    if shape == "exponential":
        return float(minimum**progress)
    return minimum + (1 - minimum) * FALL[shape](progress)
