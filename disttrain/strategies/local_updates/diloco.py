"""Methods whose workers go back to the anchor, or towards it, when their exchange lands: at once, or within the next round."""

from __future__ import annotations

from typing import Literal, Unpack

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from disttrain.strategies.base import strategies
from disttrain.strategies.local_updates.engine import Common, LocalUpdates, LocalUpdatesConfig
from disttrain.strategies.local_updates.fragments import Fragment
from disttrain.strategies.local_updates.outer import OuterStep


class DiLoCo(LocalUpdates):
    """Outer steps with deltas that land ``delay < period`` local steps after their round.

    With an outer step that averages this is local SGD (arXiv 1805.09767), with heavy-ball momentum SlowMo (arXiv 1910.00643),
    with Nesterov's DiLoCo (arXiv 2311.08105), with fragments and a delay Streaming DiLoCo (arXiv 2501.18512, algorithm 2).

    Args:
        period: τ, local steps in a round.
        outer: what becomes of the mean delta.
        delay: local steps from a round's end to its exchange's landing.
        mix: how much of the live parameters stays when the exchange lands; 0: workers go on from the anchor.
        fragments: parts of the parameters, whose rounds close one after another.
        common: of :class:`LocalUpdates`.

    Raises:
        ValueError: if these do not fit together.
    """

    def __init__(
        self,
        period: int,
        outer: OuterStep,
        delay: int = 0,
        mix: float = 0.0,
        fragments: int = 1,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(period, outer, delay, fragments, **common)
        if not 0 <= mix <= 1:
            raise ValueError(f"mix must be from 0 to 1, got {mix}")
        if delay == period:
            raise ValueError(
                f"delay must be less than period={period}, got {delay}: for a whole round of delay take co2 or cocod_sgd"
            )
        self.mix = mix

    def close(self, fragment: Fragment) -> None:
        """Post what the round has changed."""
        self.post(fragment, self._delta(fragment))
        if self.delay == 0:
            self.land(fragment)

    def _delta(self, fragment: Fragment) -> Tensor:
        """From the anchor in the precision of the live parameters: what that rounds off is nobody's progress."""
        return fragment.of(self.anchor).to(self.x.dtype).to(self.dtype) - fragment.of(self.x)

    def land(self, fragment: Fragment) -> None:
        """The outer step, and the workers' return."""
        mean = self.take(fragment)
        if mean is None:
            return
        self.apply(fragment, mean)
        anchor = fragment.of(self.anchor)
        fragment.put(self.x, anchor if self.mix == 0 else self.mix * fragment.of(self.x) + (1 - self.mix) * anchor)

    def drain(self, fragment: Fragment, steps: int) -> None:
        """Land, and close the open round; what one has changed before the last one's landing is not its own."""
        self.land(fragment)
        if steps > (self.delay if steps < self.steps else 0):  # in the first round nothing lands
            self.post(fragment, self._delta(fragment))
            self.land(fragment)


@strategies.register
class LocalSGDConfig(LocalUpdatesConfig):
    """Parameters are averaged after every round (arXiv 1805.09767); with ``warmup_steps`` post-local SGD (arXiv 1808.07217)."""

    name: Literal["local_sgd"] = "local_sgd"

    def build(self) -> DiLoCo:
        """The strategy itself."""
        return DiLoCo(self.period, OuterStep(), **self.common)


@strategies.register
class SlowMoConfig(LocalUpdatesConfig):
    """Heavy-ball momentum of the rounds' means (arXiv 1910.00643)."""

    name: Literal["slowmo"] = "slowmo"
    outer_lr: float = Field(1.0, gt=0)
    """α."""
    outer_momentum: float = Field(0.5, ge=0, lt=1)
    """β; the paper tunes it from 0.4 to 0.8, more for more workers."""

    def build(self) -> DiLoCo:
        """The strategy itself."""
        return DiLoCo(self.period, OuterStep(self.outer_lr, self.outer_momentum), **self.common)


@strategies.register
class DiLoCoConfig(LocalUpdatesConfig):
    """Nesterov momentum of the rounds' means (arXiv 2311.08105)."""

    name: Literal["diloco"] = "diloco"
    outer_lr: float = Field(0.7, gt=0)
    """α."""
    outer_momentum: float = Field(0.9, ge=0, lt=1)
    """β; 0.9 needs a hundred rounds and more to pay off."""

    def build(self) -> DiLoCo:
        """The strategy itself."""
        return DiLoCo(self.period, OuterStep(self.outer_lr, self.outer_momentum, nesterov=True), **self.common)


@strategies.register
class StreamingDiLoCoConfig(DiLoCoConfig):
    """DiLoCo layer by layer, each part's exchange hidden behind some local steps (arXiv 2501.18512)."""

    name: Literal["streaming_diloco"] = "streaming_diloco"  # type: ignore[assignment]
    outer_lr: float = Field(0.4, gt=0)
    """α."""
    fragments: int = Field(3, ge=1)
    """Parts of the model, whose rounds end one after another."""
    delay: int = Field(1, ge=0)
    """Local steps that an exchange may take; the paper advises at most 5."""
    mix: float = Field(0.5, ge=0, le=1)
    """How much of the live parameters stays when an exchange lands: 0 goes on from the anchor, 1 ignores it."""

    @field_validator("delay")
    @classmethod
    def _within_a_round(cls, value: int, info: ValidationInfo) -> int:
        if (period := info.data.get("period")) is not None and value >= period:
            raise ValueError(f"delay={value} must be less than period={period}; for a whole round of delay take co2 or cocod_sgd")
        return value

    @field_validator("fragments")
    @classmethod
    def _one_in_a_step(cls, value: int, info: ValidationInfo) -> int:
        if (period := info.data.get("period")) is not None and value > period:
            raise ValueError(f"fragments={value} must be at most period={period}: one is exchanged in a step at most")
        return value

    def build(self) -> DiLoCo:
        """The strategy itself."""
        outer = OuterStep(self.outer_lr, self.outer_momentum, nesterov=True)
        return DiLoCo(self.period, outer, self.delay, self.mix, self.fragments, **self.common)
