"""The section ``federated`` of a config: who takes part, what they do, and for how long."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor

from disttrain.component import Config
from disttrain.federated.algorithm import Algorithm, AlgorithmConfig, federated_algorithms
from disttrain.federated.algorithms import FedAvgConfig
from disttrain.federated.arrivals import LatencyConfig, WaitForAllConfig, WaitingConfig, waitings
from disttrain.federated.engines import RayConfig
from disttrain.federated.ordered import Ordered
from disttrain.federated.orderings import NoOrderingConfig, OrderingConfig, orderings
from disttrain.federated.participation import (
    CurriculumConfig,
    ParticipationConfig,
    UniformConfig,
    WeightedConfig,
    participations,
)
from disttrain.federated.rounds import BLOCK_SIZE, Availability
from disttrain.federated.work import Plan

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class NoiseConfig(Config):
    """Gaussian noise of a link, on each entry of each vector, drawn for each client and round."""

    up: float = Field(0.0, ge=0)
    """Variance on the way to the server."""
    down: float = Field(0.0, ge=0)
    """Variance on the way to a client, each of which receives a message of its own."""


class FederatedConfig(Config):
    """A server, and clients that own the training samples."""

    clients: Count = 100
    """N, among whom the partition divides the samples."""
    cohort: Count | Share = 10
    """S, clients of a round: a number, or a share of all clients, such as 0.1."""
    rounds: Count = 300
    """T, of the whole run."""
    local_steps: Count = 10
    """K, of each client in a round."""
    batch_size: Count = 10
    """Samples of a local step, drawn with replacement from the client's own."""
    large_batch: Count | None = None
    """Samples of a large batch, where the algorithm has any; null: all that the client has."""
    lr: float = Field(0.1, gt=0)
    """η_l, of local steps; the schedule multiplies it from round to round."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Of local steps, from zero in each round; only where the algorithm allows it."""
    weight_decay: float = Field(0.0, ge=0)
    """The same; added to the gradient, times the parameters."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """A gradient of larger norm is scaled down to it before a local step; null: never."""
    noise: NoiseConfig = NoiseConfig()
    """Of the links."""
    algorithm: SerializeAsAny[AlgorithmConfig] = FedAvgConfig()
    """What clients and server do."""
    ordering: SerializeAsAny[OrderingConfig] = NoOrderingConfig()
    """In which order a client's samples come."""
    participation: SerializeAsAny[ParticipationConfig] = UniformConfig()
    """Who is asked."""
    waiting: SerializeAsAny[WaitingConfig] = WaitForAllConfig()
    """For whom the server waits."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """With which probability a client that is asked does not answer."""
    latency: LatencyConfig = LatencyConfig()
    """How long the others take, in virtual time."""
    min_completion: float = Field(0.0, ge=0, le=1)
    """The share of the cohort that must answer; with fewer, a round changes nothing."""
    on_empty: Literal["error", "skip"] = "error"
    """What to do about clients that the partition leaves without a sample. error: refuse to start; skip: never ask them."""
    engine: Literal["auto", "serial", "batched", "ray"] = "auto"
    """serial: clients one after another; batched: those of a block at once; auto: whichever is faster in a short trial; ray: on
    Ray actors."""
    ray: RayConfig = RayConfig()
    """For engine=ray."""
    block_size: Count = BLOCK_SIZE
    """Clients that are computed and summed together; another number changes the last bits of results."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.cohort_size == 0:
            raise ValueError(
                f"cohort={self.cohort:g} of {self.clients} clients rounds to zero: take {1 / self.clients:g} or a number"
            )
        if self.cohort_size > self.clients:
            raise ValueError(f"cohort={self.cohort} must be at most federated.clients={self.clients}")
        anybody = torch.zeros(1) if self.ordering.expert_path else None
        self.build(anybody).check(self.plan(seed=0), f"federated.algorithm.name={self.algorithm.name}")
        self.participation.check(self.clients)
        if isinstance(self.participation, WeightedConfig) and getattr(self.algorithm, "weighting", "uniform") == "samples":
            raise ValueError(
                "participation.name=weighted asks clients by their samples, and algorithm.weighting=samples would count these a "
                "second time: set algorithm.weighting=uniform"
            )
        return self

    @property
    def cohort_size(self) -> int:
        """S as a number."""
        return self.cohort if isinstance(self.cohort, int) else round(self.cohort * self.clients)

    def build(self, expert: Tensor | None = None) -> Algorithm:
        """The algorithm, with the order of samples and clients around it if there is one.

        Args:
            expert: ``[d]``, the model that scores samples, where the ordering asks for one.
        """
        algorithm = self.algorithm.build()
        participation = self.participation
        reports = participation.pacing if isinstance(participation, CurriculumConfig) else None
        order = self.ordering.build(expert)
        return Ordered(algorithm, order, reports) if order or reports else algorithm

    def order(self) -> list[str]:
        """What comes first, in words; nothing where all comes by chance at any time."""
        said = []
        if (order := self.ordering.build(torch.zeros(1) if self.ordering.expert_path else None)) is not None:
            by = "" if order.first == "random" else f" by {order.score} loss"
            said.append(f"samples {order.first} first{by}, {order.pacing}")
        if isinstance(self.participation, CurriculumConfig):
            which = "hard" if self.participation.largest_first else "easy"
            said.append(f"clients {which} first by their last loss, {self.participation.pacing}")
        return said

    @property
    def compute(self) -> Literal["auto", "serial", "batched"]:
        """How a block is computed, wherever that is."""
        return self.ray.compute if self.engine == "ray" else self.engine

    def plan(self, seed: int) -> Plan:
        """What all rounds have in common."""
        return Plan(
            num_clients=self.clients,
            seed=seed,
            steps=self.local_steps,
            lr=self.lr,
            batch_size=self.batch_size,
            large_batch=self.large_batch,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            noise_up=self.noise.up,
            noise_down=self.noise.down,
            rounds=self.rounds,
        )

    def availability(self) -> Availability:
        """Who takes part."""
        return Availability(self.cohort_size, self.participation, self.waiting, self.dropout, self.latency, self.min_completion)


federated_algorithms.choose_in(FederatedConfig, "algorithm")
orderings.choose_in(FederatedConfig, "ordering")
participations.choose_in(FederatedConfig, "participation")
waitings.choose_in(FederatedConfig, "waiting")
