"""Whom the server asks in a round: a pure function of the seed and the round.

``uniform`` sorts all clients by a hash of (seed, round, client) and takes the first: a fair draw without replacement, which
anybody who knows the members can repeat without a coordinator, as in "Decentralized Learning Made Practical with Client
Sampling" (arXiv 2302.13837), and which changes by one client when one joins or leaves. ``weighted`` does the same with
exponential variables, the first of whom come with probability in proportion to their weight (Efraimidis and Spirakis, 2006).
``cyclic`` takes turns. ``trace`` reads from a file who is there, and draws among these as ``uniform`` does. ``curriculum`` and
``anti_curriculum`` do so among the clients whose loss was least, or largest, when it was last heard of (arXiv 2212.12712).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from disttrain import random
from disttrain.component import ComponentConfig, Registry
from disttrain.federated.pacing import PacingConfig
from disttrain.federated.traces import read_trace


class ParticipationConfig(ComponentConfig):
    """Base of all ways to choose a cohort."""

    def cohort(self, clients: Tensor, sizes: Tensor, count: int, seed: int, round: int) -> Tensor:
        """Who is asked: ``count`` different clients, or all if there are fewer, int64 ``[S]``.

        Args:
            clients: int64 ``[n]``, those that can be asked.
            sizes: int64 ``[n]``, how many samples each has.
            count: S.
            seed: the run's.
            round: from 0, in any order: the result depends on nothing else.
        """
        raise NotImplementedError(f"{type(self).__name__} must define cohort()")

    def check(self, num_clients: int) -> None:
        """Raise ValueError if it is not for so many clients."""


participations: Registry[ParticipationConfig] = Registry("federated.participation", default="uniform")


@participations.register
class UniformConfig(ParticipationConfig):
    """All clients alike, drawn anew in each round without replacement, in the order of a hash of their numbers."""

    name: Literal["uniform"] = "uniform"

    def cohort(self, clients: Tensor, sizes: Tensor, count: int, seed: int, round: int) -> Tensor:
        """The first by hash."""
        keys = random.key(seed, random.Stream.COHORT, round, clients)
        return clients[keys.argsort(stable=True)[:count]]


@participations.register
class WeightedConfig(ParticipationConfig):
    """Clients with more samples more often; take algorithms that then count all alike, for samples would count twice."""

    name: Literal["weighted"] = "weighted"

    def cohort(self, clients: Tensor, sizes: Tensor, count: int, seed: int, round: int) -> Tensor:
        """The first of exponential variables with the sizes as rates."""
        keys = random.key(seed, random.Stream.COHORT, round, clients)
        uniform = (random.bits(keys, 1)[:, 0].double() + 0.5) / 2.0**63  # never 0 nor, after rounding, more than 1
        return clients[(-uniform.log() / sizes.double()).argsort(stable=True)[:count]]


@participations.register
class CyclicConfig(ParticipationConfig):
    """Clients take turns, in an order that the seed decides, so that all have been asked before anybody is asked again."""

    name: Literal["cyclic"] = "cyclic"

    def cohort(self, clients: Tensor, sizes: Tensor, count: int, seed: int, round: int) -> Tensor:
        """The next of an endless line."""
        order = random.key(seed, random.Stream.COHORT, 0, clients).argsort(stable=True)
        count = min(count, len(clients))
        return clients[order[torch.arange(round * count, (round + 1) * count) % len(clients)]]


@participations.register
class TraceConfig(UniformConfig):
    """All clients alike among those that are there, which a file tells; with nobody there, a round is void."""

    name: Literal["trace"] = "trace"  # type: ignore[assignment]
    path: str = Field(min_length=1)
    """A CSV file with the header client,from,until and a line for each stretch of rounds in which a client can be asked."""
    period: int | None = Field(None, ge=1)
    """Rounds after which the trace begins again; null: whoever it no longer names is gone."""

    @field_validator("path")
    @classmethod
    def _can_be_read(cls, value: str) -> str:
        read_trace(value)
        return value

    def check(self, num_clients: int) -> None:
        """No line is of a client that does not exist."""
        if (last := int(read_trace(self.path).clients.max())) >= num_clients:
            raise ValueError(f"participation.path={self.path} names client {last}, and there are clients 0 to {num_clients - 1}")

    def cohort(self, clients: Tensor, sizes: Tensor, count: int, seed: int, round: int) -> Tensor:
        """The first by hash of those that are there."""
        now = round if self.period is None else round % self.period
        there = read_trace(self.path).there(clients, now)
        return super().cohort(clients[there], sizes[there], count, seed, round)


@participations.register
class CurriculumConfig(UniformConfig):
    """All clients alike among those whose data the model finds easiest, and later among all."""

    name: Literal["curriculum"] = "curriculum"  # type: ignore[assignment]
    pacing: PacingConfig = PacingConfig()
    """How soon all can be asked."""
    largest_first: ClassVar[bool] = False

    def among(self, losses: Tensor, count: int, round: int, rounds: int) -> Tensor:
        """Who can be asked, of all clients by their last known losses ``[n]``: booleans ``[n]``.

        In the first rounds, as many as it takes to ask everybody once, those never heard of (inf) come before all others. Whoever
        has not been heard of since then, such as a client that is always late, can be asked beside those whose turn it is.

        Args:
            losses: as the server knows them.
            count: how many will be asked.
            round: from 0.
            rounds: of the whole run.
        """
        unknown, number = losses.isinf(), self.pacing.count(len(losses), round, rounds, count)
        if number == len(losses):
            return torch.ones_like(unknown)
        if round * count < len(losses):
            number = max(0, count - int(unknown.sum()))
        ranked = (-losses if self.largest_first else losses).masked_fill(unknown, torch.inf).argsort(stable=True)
        chosen = unknown.clone()
        chosen[ranked[:number]] = True
        return chosen


@participations.register
class AntiCurriculumConfig(CurriculumConfig):
    """All clients alike among those whose data the model finds hardest, and later among all."""

    name: Literal["anti_curriculum"] = "anti_curriculum"  # type: ignore[assignment]
    largest_first: ClassVar[bool] = True
