"""Who answers, and when, in virtual time; and for whom the server waits.

Nothing here takes real time or depends on it: whether a client of a round answers, and after how many seconds, is drawn by
(seed, stream, round, client). A client takes ``seconds · local steps · its own factor · the round's factor``, both of them
log-normal with median 1. A drop-out is noticed when the client would have answered (its connection is gone).

A client that answers too late, or not at all, changes nothing: neither the server nor its own state, as if it had not been asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain import random
from disttrain.component import ComponentConfig, Config, Registry
from disttrain.quantities import Duration


class LatencyConfig(Config):
    """How long a client takes."""

    seconds: Duration = Field(1.0, ge=0)
    """For one local step, and its share of the transfers; the median."""
    client_spread: float = Field(0.0, ge=0)
    """How different clients are: σ of the logarithm of a factor that each has for the whole run; of 1, two thirds are within 2.7
    times."""
    round_spread: float = Field(0.0, ge=0)
    """How different rounds are: σ of the logarithm of a factor that is drawn for each client in each round."""

    def draw(self, clients: Tensor, steps: int, seed: int, round: int) -> Tensor:
        """Seconds from being asked to having answered, float64 ``[S]``."""
        own = random.normal(random.key(seed, random.Stream.LATENCY, 0, clients), 1)[:, 0]
        now = random.normal(random.key(seed, random.Stream.LATENCY, round + 1, clients), 1)[:, 0]
        return self.seconds * steps * (self.client_spread * own + self.round_spread * now).exp()


@dataclass(frozen=True)
class Arrivals:
    """What becomes of a cohort.

    Args:
        used: booleans ``[S]``, whose replies the server takes.
        seconds: how long the round takes, in virtual time.
    """

    used: Tensor
    seconds: float


class WaitingConfig(ComponentConfig):
    """Base of all rules of for whom to wait."""

    def invited(self, cohort: int) -> int:
        """How many are asked for a cohort of that size."""
        return cohort

    def decide(self, answers: Tensor, seconds: Tensor, cohort: int) -> Arrivals:
        """Whose replies are taken.

        Args:
            answers: booleans ``[S]``, who answers at all.
            seconds: float64 ``[S]``, when.
            cohort: how many replies are wanted.
        """
        raise NotImplementedError(f"{type(self).__name__} must define decide()")


waitings: Registry[WaitingConfig] = Registry("federated.waiting", default="all")


@waitings.register
class WaitForAllConfig(WaitingConfig):
    """For everybody who answers, however long that takes."""

    name: Literal["all"] = "all"

    def decide(self, answers: Tensor, seconds: Tensor, cohort: int) -> Arrivals:
        """Until the last has answered or was noticed to be gone."""
        return Arrivals(answers, float(seconds.max()) if len(seconds) else 0.0)


@waitings.register
class DeadlineConfig(WaitingConfig):
    """For a fixed time; a round in which all have answered ends earlier."""

    name: Literal["deadline"] = "deadline"
    seconds: Duration = Field(60.0, gt=0)
    """After which a client is given up."""

    def decide(self, answers: Tensor, seconds: Tensor, cohort: int) -> Arrivals:
        """Those that were in time."""
        in_time = answers & (seconds <= self.seconds)
        return Arrivals(in_time, min(float(seconds.max()), self.seconds) if len(seconds) else 0.0)


@waitings.register
class OvercommitConfig(WaitingConfig):
    """More clients are asked than are needed, and the first to answer are taken: fast clients are heard more often."""

    name: Literal["overcommit"] = "overcommit"
    factor: float = Field(1.3, ge=1)
    """How many are asked, as a multiple of the cohort; rounded up."""

    def invited(self, cohort: int) -> int:
        """Rounded up."""
        return math.ceil(round(self.factor * cohort, 9))

    def decide(self, answers: Tensor, seconds: Tensor, cohort: int) -> Arrivals:
        """The first that answer."""
        order = torch.where(answers, seconds, torch.inf).argsort(stable=True)
        used = torch.zeros_like(answers)
        used[order[:cohort]] = True
        used &= answers
        enough = int(used.sum()) == cohort
        return Arrivals(used, float((seconds[used] if enough else seconds).max()) if len(seconds) else 0.0)


def answering(clients: Tensor, dropout: float, seed: int, round: int) -> Tensor:
    """Who answers at all, booleans ``[S]``, when each is lost with probability ``dropout``."""
    keys = random.key(seed, random.Stream.DROPOUT, round, clients)
    return random.uniform(keys, 1)[:, 0] >= dropout
