"""When workers talk, apart from who talks to whom: how likely a pair that a topology names is to exchange in a round.

"On the Surprising Effectiveness of a Single Global Merging in Decentralized Learning" (arXiv 2507.06542) finds that messages late
in training are worth more than early ones, and that few are enough to keep models fit for one merge at the end, but not none.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator

from disttrain import random
from disttrain.component import ComponentConfig, Registry
from disttrain.quantities import Size
from disttrain.strategies.gossip.trigger import Trigger
from disttrain.topology import Mixing, Topology


class Costs(NamedTuple):
    """What a schedule may need to know of a run."""

    steps: int | None
    """Of the whole run; None: nobody has said."""
    period: int
    """Local steps in a round."""
    round_bytes: int
    """What a worker sends in a round in which all talk."""
    merge_bytes: int
    """What it sends for the merge at the end."""


class CommunicationConfig(ComponentConfig):
    """What every schedule has: a pure function of the step, so that both ends of a pair know it."""

    def reaches_all(self, step: int) -> bool:
        """Whether everybody talks to everybody after local step ``step``, whatever the topology is."""
        return False

    @property
    def may_reach_all(self) -> bool:
        """Whether there are steps after which everybody talks to everybody."""
        return False

    def rate(self, step: int) -> float:
        """The probability in [0, 1] that a pair exchanges after local step ``step``."""
        raise NotImplementedError(f"{type(self).__name__} must define rate()")

    def trigger(self) -> Trigger | None:
        """What lets pairs decide by themselves in each round; None: the schedule decides for them."""
        return None

    def fitted(self, costs: Costs) -> CommunicationConfig:
        """The schedule of such a run.

        Raises:
            ValueError: if there is none.
        """
        return self

    @property
    def description(self) -> str:
        """What was decided, if the name does not say it."""
        return ""

    def check_steps(self, steps: int) -> None:
        """Raise ValueError if a run of so many steps makes no sense."""

    def check_topology(self, topology: Topology) -> None:
        """Raise ValueError if workers of this topology cannot talk so."""


communications: Registry[CommunicationConfig] = Registry("strategy.communication", default="always")


@communications.register
class AlwaysConfig(CommunicationConfig):
    """In every round."""

    name: Literal["always"] = "always"

    def rate(self, step: int) -> float:
        """1."""
        return 1.0


@communications.register
class SometimesConfig(CommunicationConfig):
    """Every pair by itself, now and then."""

    name: Literal["sometimes"] = "sometimes"
    probability: float = Field(0.2, gt=0, le=1)
    """Of a pair, in a round."""

    def rate(self, step: int) -> float:
        """The same all the time."""
        return self.probability


@communications.register
class WindowConfig(CommunicationConfig):
    """In every round of a part of the run, early or late, and seldom outside of it."""

    name: Literal["window"] = "window"
    start: int = Field(0, ge=0)
    """The window's first step."""
    stop: int | None = Field(None, ge=1)
    """The first step after it; null: it lasts to the end."""
    outside: float = Field(0.0, ge=0, le=1)
    """The probability that a pair exchanges in a round outside of the window."""
    everybody: bool = False
    """Whether everybody talks to everybody inside, whatever the topology is: n − 1 messages a worker and round."""

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop={self.stop} must be more than start={self.start}: the window would be empty")
        return self

    def check_steps(self, steps: int) -> None:
        """Some of the window must be in the run."""
        if self.start >= steps:
            raise ValueError(f"strategy.communication.start={self.start} must be less than steps={steps}: the window never opens")

    def reaches_all(self, step: int) -> bool:
        """Inside, if that is wanted."""
        return self.everybody and self._is_open(step)

    @property
    def may_reach_all(self) -> bool:
        """Inside, if that is wanted."""
        return self.everybody

    def rate(self, step: int) -> float:
        """1 inside."""
        return 1.0 if self._is_open(step) else self.outside

    def _is_open(self, step: int) -> bool:
        return self.start <= step and (self.stop is None or step < self.stop)


@communications.register
class TriggeredConfig(CommunicationConfig):
    """In rounds in which a pair finds that workers have gone far apart; to find that out costs 8 bytes a peer in every round."""

    name: Literal["triggered"] = "triggered"
    threshold: float = Field(0.01, gt=0)
    """The consensus distance, √(mean of ‖x_i − x̄‖²), from which a pair exchanges models."""
    relative: bool = True
    """Whether the threshold is a share of ‖x‖, the length of a worker's parameters; else it is in their unit."""

    def rate(self, step: int) -> float:
        """1: the rest is decided in the round."""
        return 1.0

    def trigger(self) -> Trigger:
        """By the threshold."""
        return Trigger(self.threshold, self.relative)

    def check_topology(self, topology: Topology) -> None:
        """Both ends must hear each other to decide alike."""
        if not topology.symmetric:
            raise ValueError(
                f"communication.name=triggered lets both ends of a pair decide, and {topology.name} is one-way: take base_graph, "
                "random_matching or ring, or communication.name=sometimes"
            )


Spend = Literal["even", "early", "late"]


@communications.register
class BudgetConfig(CommunicationConfig):
    """In as many rounds as a number of bytes pays for, which a worker may send in the whole run."""

    name: Literal["budget"] = "budget"
    bytes: Size
    """What a worker may send for models, the merge at the end included."""
    spend: Spend = "even"
    """Which rounds: even: spread over the run; early: the first ones; late: the last ones."""

    def fitted(self, costs: Costs) -> Affordable:
        """As many rounds as the budget allows after the merge."""
        if costs.steps is None:
            raise ValueError("communication.name=budget needs the number of steps: set the strategy's total_steps before begin()")
        rounds = costs.steps // costs.period
        if not costs.round_bytes:  # a single worker
            return Affordable(rounds=rounds, of=rounds, period=costs.period, spend=self.spend)
        affordable = (self.bytes - costs.merge_bytes) // costs.round_bytes
        if affordable < 1:
            merge = f", and for the merge at the end {costs.merge_bytes:,} (none with merge=false)" if costs.merge_bytes else ""
            raise ValueError(
                f"strategy.communication.bytes={self.bytes:,} does not pay for a single round: a worker sends "
                f"{costs.round_bytes:,} bytes for one{merge}; give at least {costs.round_bytes + costs.merge_bytes:,}"
            )
        return Affordable(rounds=min(affordable, rounds), of=rounds, period=costs.period, spend=self.spend)


class Affordable(CommunicationConfig):
    """What comes of a budget: some rounds of all, always the same number."""

    name: Literal["affordable"] = "affordable"
    rounds: int
    of: int
    period: int
    spend: Spend

    def rate(self, step: int) -> float:
        """1 in the rounds that are paid for."""
        number = step // self.period  # from 1 to ``of``
        if self.spend == "early":
            return float(number <= self.rounds)
        if self.spend == "late":
            return float(number > self.of - self.rounds)
        return float(number * self.rounds // self.of > (number - 1) * self.rounds // self.of)

    @property
    def description(self) -> str:
        """How many rounds there are."""
        return f"; in {self.rounds:,} of {self.of:,} rounds"


def spoken(mixing: Mixing, rate: float, seed: int, number: int, symmetric: bool) -> Mixing:
    """The part of round ``number`` in which pairs do exchange.

    Both ends of a pair draw the same. Of a topology that is not symmetric all pairs draw the same, for a part of it would not
    keep the mean.
    """
    if rate >= 1:
        return mixing
    themselves = torch.arange(mixing.size)[:, None]
    pairs = torch.minimum(themselves, mixing.senders) * mixing.size + torch.maximum(themselves, mixing.senders)
    keys = random.key(seed, random.Stream.COMMUNICATION, number, pairs if symmetric else torch.zeros_like(pairs))
    said = random.uniform(keys, 1)[..., 0] < rate
    return Mixing(torch.where(said, mixing.senders, themselves), torch.where(said, mixing.weights, 0.0))
