"""Gossip: workers mix their parameters with those of a few peers, now and then; there is no server and no all-reduce of models.

A topology says who hears from whom in a round, a communication schedule whether they talk, and a strategy what they make of it.

Mixing is the addition of flows, x_i ← x_i + Σ_j w_ij (x_j − x_i). Both ends of a pair add opposite amounts, computed from the
same two vectors, so the sum over all workers is kept, up to rounding, even where one end adds its flow later.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NotRequired, TypedDict

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor

from disttrain.parameters import Layout
from disttrain.strategies.agreeing import AgreesLate
from disttrain.strategies.base import StrategyConfig
from disttrain.strategies.gossip.communication import AlwaysConfig, CommunicationConfig, communications, spoken
from disttrain.strategies.gossip.living import among_living, check_survival
from disttrain.topology import BaseGraphConfig, Mixing, Topology, TopologyConfig, complete, topologies
from disttrain.worlds.in_flight import InFlight
from disttrain.worlds.surviving import Answer, SurvivesPeers, answers
from disttrain.worlds.traffic import all_reduce_wire_bytes
from disttrain.worlds.world import World


class Settings(TypedDict):
    """Arguments of :class:`Gossip` that every strategy passes on."""

    topology: TopologyConfig
    communication: NotRequired[CommunicationConfig]
    period: NotRequired[int]
    merge: NotRequired[bool]


class Gossip(AgreesLate):
    """What all gossip strategies have: rounds, the lane that they travel on, and one merge at the end.

    Args:
        topology: who hears from whom.
        communication: how likely a pair is to exchange in a round; None: it always does.
        period: H, local steps in a round.
        merge: whether the result is the mean of all workers' parameters; else each keeps its own.

    Raises:
        ValueError: unless the period is positive; in :meth:`begin`, if the topology does not allow so many workers.
    """

    def __init__(
        self, topology: TopologyConfig, communication: CommunicationConfig | None = None, period: int = 1, merge: bool = True
    ) -> None:
        if period < 1:
            raise ValueError(f"period must be at least 1, got {period}")
        self._topology, self.communication, self.period, self.merge = topology, communication or AlwaysConfig(), period, merge

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Build the topology for so many workers."""
        super().begin(x, layout, world, seed)
        self.topology = self._topology.build(world.size, seed)
        self._degree = self.topology.degree
        self.lane = world.lane("gossip")
        self._steps = torch.zeros(1, 1, dtype=torch.int64)
        self._peer_distance = x.new_zeros(len(x), 1)
        self._sent_by_all = torch.zeros(1, 1, dtype=torch.int64)

    @property
    def steps(self) -> int:
        """Local steps so far."""
        return int(self._steps)

    @cached_property
    def _everybody(self) -> Topology:
        return complete(self.world.size)

    def round_due(self) -> Mixing | None:
        """What is to be exchanged now that ``steps`` local steps are done; None if nobody says anything."""
        number, rest = divmod(self.steps, self.period)
        if rest or not number or self.world.size == 1:
            return None
        rate = self.communication.rate(self.steps)
        topology = self._everybody if self.communication.reaches_all(self.steps) else self.topology
        mixing = spoken(self._round(topology, number - 1), rate, self.seed, number, topology.symmetric) if rate > 0 else None
        return mixing if mixing is not None and mixing.degree else None

    def _round(self, topology: Topology, t: int) -> Mixing:
        """Round ``t`` of the workers that there are."""
        if not isinstance(self.lane, SurvivesPeers):
            return topology.round(t)
        return among_living(topology, self._topology, t, self.lane.living(self.steps), self.seed)

    def skip(self, steps: int) -> None:
        """Go on as if so many steps had been made: this worker was away, and the others were not."""
        self._steps += steps

    def count(self, mixing: Mixing) -> None:
        """Count the round's messages."""
        self._sent_by_all += len(mixing.links.receivers)

    def start(self, mixing: Mixing, x: Tensor) -> InFlight:
        """Exchange vectors ``x [L, c·d]``, of which the first d entries are parameters; lent until :meth:`land`."""
        return self.lane.start(self._flows, x, mixing, self.steps)

    def land(self, flight: InFlight) -> Tensor:
        """What mixing adds to the vectors that were exchanged, ``[L, c·d]``."""
        flow: Tensor
        flow, self._peer_distance = flight.take()
        if not self._peer_distance.isfinite().all():
            raise RuntimeError(f"diverged: after {self.steps} steps some worker's parameters are not finite any more")
        return flow

    def flow_now(self, mixing: Mixing, x: Tensor) -> Tensor:
        """Counted, exchanged and waited for."""
        self.count(mixing)
        return self.land(self.start(mixing, x))

    def _flows(self, x: Tensor, mixing: Mixing, step: int) -> tuple[Tensor, Tensor]:
        """On the lane: the flows, and each worker's mean squared distance to its peers ``[L, 1]``."""
        return self._added(answers(self.lane, x, mixing, mixing.weights[self.world.positions], step), x)

    def _added(self, landed: Sequence[Answer], x: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of what answers add to ``x [L, c·d]``, and the distances."""
        flow, distance, peers = torch.zeros_like(x), x.new_zeros(len(x), 1), torch.zeros(len(x), 1, device=x.device)
        for answer in landed:
            # One rounding per operation: kernels that fuse them round differently at the end of a row.
            difference, heard = answer.theirs - answer.own, answer.weights != 0
            distance += difference[:, : self.layout.d].square().sum(-1, keepdim=True) * heard
            peers += heard
            flow += difference.mul_(answer.weights)
        return flow, torch.where(peers > 0, distance / peers.clamp(min=1), self._peer_distance)

    def finish(self) -> Tensor:
        """The mean of all workers' parameters, or worker 0's own."""
        if isinstance(self.lane, SurvivesPeers):
            late, _ = self._added(self.lane.settle(self.x), self.x)
            self.x += late
        return self.world.mean(self.x) if self.merge else self.evaluation()

    @property
    def metrics(self) -> dict[str, float]:
        """Worker 0's mean squared distance to the peers that it heard last; how many models all workers have sent."""
        lost = {"lost_exchanges": float(self.lane.lost_exchanges)} if isinstance(self.lane, SurvivesPeers) else {}
        return {"peer_distance": float(self._peer_distance[0]), "sent_by_all": float(self._sent_by_all)} | lost

    @property
    def shared(self) -> dict[str, Tensor]:
        """How many steps were made, and models sent."""
        return {"steps": self._steps, "sent_by_all": self._sent_by_all}

    @property
    def local(self) -> dict[str, Tensor]:
        """How far each worker was from its peers."""
        return {"peer_distance": self._peer_distance}

    @property
    def vectors_sent(self) -> int:
        """Of the parameters' size, to each peer."""
        return 1

    @property
    def temporary_copies(self) -> float:
        """What was heard, a difference, and the flow."""
        return self.vectors_sent * (self._degree + 2.0)

    @property
    def description(self) -> str:
        """Who talks to whom, and what that costs."""
        num_bytes = self.layout.numel * self.x.element_size()
        sent, ddp = (
            num_bytes * self._degree * self.vectors_sent,
            self.period * all_reduce_wire_bytes(4 * self.layout.numel, self.world.size),
        )
        every = "step" if self.period == 1 else f"{self.period} steps"
        share = f", {100 * sent / ddp:.3g}% of DDP's" if ddp else ""
        end = "; merged at the end" if self.merge else ""
        return f"{self.topology.name}, after every {every} {sent:,} bytes per worker at most{share}{end}"


class GossipConfig(StrategyConfig):
    """What all gossip strategies have."""

    topology: SerializeAsAny[TopologyConfig] = BaseGraphConfig()
    """Who talks to whom in a round."""
    communication: SerializeAsAny[CommunicationConfig] = AlwaysConfig()
    """When they do."""
    period: int = Field(1, ge=1)
    """H: local steps in a round."""
    merge: bool = True
    """Whether the result is the mean of all workers' models, taken once at the end; else worker 0's own."""

    @property
    def settings(self) -> Settings:
        """Arguments that all have."""
        return {"topology": self.topology, "communication": self.communication, "period": self.period, "merge": self.merge}

    def check_world(self, world_size: int) -> None:
        """The topology must allow so many workers."""
        self.topology.check_world(world_size)

    def check_survival(self, world_size: int) -> None:
        """Links must go both ways."""
        super().check_survival(world_size)
        check_survival(self.topology.build(world_size))

    def check_steps(self, steps: int) -> None:
        """Somebody must talk."""
        self.communication.check_steps(steps)
        if steps < self.period:
            raise ValueError(
                f"steps={steps} is less than a round of strategy.period={self.period} steps: nobody would talk; take a shorter "
                "period, or strategy.name=local"
            )


topologies.choose_in(GossipConfig, "topology")
communications.choose_in(GossipConfig, "communication")
