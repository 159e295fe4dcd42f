"""Gossip: workers mix their parameters with those of a few peers, now and then; there is no server and no all-reduce of models.

A topology says who hears from whom in a round, a communication schedule whether they talk, and a strategy what they make of it.

Mixing is the addition of flows, x_i ← x_i + Σ_j w_ij (x_j − x_i). Both ends of a pair add opposite amounts, computed from the
same two vectors, so the sum over all workers is kept, up to rounding, even where one end adds its flow later.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar, NotRequired, Self, TypedDict

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor

from disttrain.parameters import Layout
from disttrain.strategies.agreeing import AgreesLate
from disttrain.strategies.base import StrategyConfig
from disttrain.strategies.gossip.communication import AlwaysConfig, CommunicationConfig, Costs, communications, spoken
from disttrain.strategies.gossip.living import among_living, check_survival
from disttrain.strategies.gossip.trigger import Known, Trigger, squared_length
from disttrain.topology import BaseGraphConfig, Mixing, Topology, TopologyConfig, complete, in_sites, topologies
from disttrain.topology.base import check_keeps_mean
from disttrain.worlds.groups import Groups
from disttrain.worlds.in_flight import InFlight
from disttrain.worlds.surviving import Answer, SurvivesPeers, answers, answers_of
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

    adds_flows: ClassVar[bool] = False
    """Whether workers go where mixing takes the parameters that were exchanged: a trigger reckons with it."""
    push_sum: ClassVar[bool] = False
    """Whether weights travel along, so that a round, or a part of one, need not keep the mean of models by itself."""

    def __init__(
        self, topology: TopologyConfig, communication: CommunicationConfig | None = None, period: int = 1, merge: bool = True
    ) -> None:
        if period < 1:
            raise ValueError(f"period must be at least 1, got {period}")
        self._topology, self.communication, self.period, self.merge = topology, communication or AlwaysConfig(), period, merge
        self.trigger = self.communication.trigger()
        if self.trigger is not None and not self.adds_flows:
            raise ValueError("communication.name=triggered is for strategies in which workers go where mixing takes them")

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Build the topology for so many workers."""
        super().begin(x, layout, world, seed)
        self.groups = Groups(world, self.group_size) if self.group_size > 1 else None
        self.topology = self._topology.build(world.size // self.group_size, seed)
        self.communication.check_topology(self.topology)
        if not self.push_sum:
            check_keeps_mean(self.topology)
        if self.trigger is not None:
            self.trigger.begin(x)
        self._degree = self.topology.degree
        self._schedule = self.communication.fitted(self._costs)
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
        return complete(self.topology.size)

    def round_due(self) -> Mixing | None:
        """What is to be exchanged now that ``steps`` local steps are done; None if nobody says anything."""
        number, rest = divmod(self.steps, self.period)
        if rest or not number or self.topology.size == 1:
            return None
        rate = self._schedule.rate(self.steps)
        topology = self._everybody if self._schedule.reaches_all(self.steps) else self.topology
        by_pairs = topology.symmetric or self.push_sum
        mixing = spoken(self._round(topology, number - 1), rate, self.seed, number, by_pairs) if rate > 0 else None
        return mixing if mixing is not None and mixing.degree else None

    def _round(self, topology: Topology, t: int) -> Mixing:
        """Round ``t`` of the workers that there are."""
        if not isinstance(self.lane, SurvivesPeers):
            return topology.round(t)
        return among_living(topology, self._topology, t, self.lane.living(self.steps), self.seed)

    def skip(self, steps: int) -> None:
        """Go on as if so many steps had been made: this worker was away, and the others were not."""
        self._steps += steps

    def join(self) -> None:
        """Nothing is under way here."""

    def count(self, mixing: Mixing) -> None:
        """Count the round's messages, if it is known that they are sent."""
        if self.trigger is None:
            self._sent_by_all += len(mixing.links.receivers)

    def start(self, mixing: Mixing, x: Tensor) -> InFlight:
        """Exchange vectors ``x [L, c·d]``, of which the first d entries are parameters; lent until :meth:`land`."""
        mixing = in_sites(mixing, self.group_size) if self.group_size > 1 else mixing
        if self.trigger is None:
            return self.lane.start(self._flows, x, mixing, self.steps)
        return self.lane.start(self._flows_called_for, x, mixing, self.trigger, self.trigger.known)

    def land(self, flight: InFlight) -> Tensor:
        """What mixing adds to the vectors that were exchanged, ``[L, c·d]``."""
        flow: Tensor
        flow, distance, *known = flight.take()
        if self.trigger is not None:
            self.trigger.land(distance >= 0, *known)
        self.measured(distance)
        return flow

    def measured(self, distance: Tensor) -> None:
        """Keep each worker's mean squared distance to its peers ``[L, 1]``, −1 of who has none: who is not finite shows in it.

        Raises:
            RuntimeError: if somebody's parameters are not.
        """
        self._peer_distance = torch.where(distance < 0, self._peer_distance, distance)
        if not self._peer_distance.isfinite().all():
            raise RuntimeError(f"diverged: after {self.steps} steps some worker's parameters are not finite any more")

    def flow_now(self, mixing: Mixing, x: Tensor) -> Tensor:
        """Counted, exchanged and waited for."""
        self.count(mixing)
        return self.land(self.start(mixing, x))

    def _flows(self, x: Tensor, mixing: Mixing, step: int) -> tuple[Tensor, Tensor]:
        """On the lane: the flows, and each worker's mean squared distance to its peers ``[L, 1]``; −1 where it has none."""
        part = self._own_part(x)
        return self.flows(part, answers(self.lane, part, mixing, mixing.weights[self.world.positions], step))

    def _flows_called_for(self, x: Tensor, mixing: Mixing, trigger: Trigger, known: Known) -> tuple[Any, ...]:
        """The same, of pairs that find themselves far apart; what is known then, and what was estimated ``[L, 1]``."""
        own = x[:, : self.layout.d]
        estimate = trigger.estimate(own, known, self.topology.size)
        part = self._own_part(x)
        heard, weights = trigger.exchange(self.lane, part, mixing, estimate)
        flow, distance = self.flows(part, answers_of(part, heard, weights))
        known = trigger.measured(own + flow[:, : self.layout.d], distance, weights, known, self.topology.size)
        return flow, distance, known, estimate

    def flows(self, x: Tensor, landed: Iterable[Answer]) -> tuple[Tensor, Tensor]:
        """What answers add to vectors ``x [L, b]``, and the distances; in groups, of parts, to the flows of wholes."""
        flow, distance, peers = torch.zeros_like(x), x.new_zeros(len(x), 1), torch.zeros(len(x), 1, device=x.device)
        for answer in landed:
            # One rounding per operation: kernels that fuse them round differently at the end of a row.
            difference, heard = answer.theirs.sub_(answer.own), answer.weights != 0
            distance[answer.rows] += squared_length(difference[:, : self.layout.d]).to(x) * heard
            peers[answer.rows] += heard
            flow[answer.rows] += difference.mul_(answer.weights)
        return self._whole(flow, torch.where(peers > 0, distance / peers.clamp(min=1), -1.0))

    def _own_part(self, x: Tensor) -> Tensor:
        """What this worker sends of vectors ``[L, b]``: in groups, whose members have the same, the part at its place."""
        return x if self.groups is None else self.groups.own_part(x)

    def _whole(self, flow: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """The flows and distances that a group's members have together; all get the same bits."""
        if self.groups is None:
            return flow, distance
        members = self.groups.gather(torch.cat([flow, distance], dim=1))
        return members[..., :-1].flatten(1)[:, : self.layout.d].contiguous(), members[..., -1].sum(1, keepdim=True)

    def finish(self) -> Tensor:
        """The mean of all workers' parameters, or worker 0's own."""
        if isinstance(self.lane, SurvivesPeers):
            late, _ = self.flows(self.x, self.lane.settle(self.x))
            self.x += late
        if not self.merge:
            return self.evaluation()
        return self.world.mean(self.x) if self.groups is None else self.groups.mean(self.x)

    @property
    def metrics(self) -> dict[str, float]:
        """Worker 0's mean squared distance to the peers that it heard last; how many models all workers have sent, if known."""
        sent = {"sent_by_all": float(self._sent_by_all)} if self.trigger is None else self.trigger.metrics
        lost = {"lost_exchanges": float(self.lane.lost_exchanges)} if isinstance(self.lane, SurvivesPeers) else {}
        return {"peer_distance": float(self._peer_distance[0])} | sent | lost

    @property
    def shared(self) -> dict[str, Tensor]:
        """How many steps were made, and models sent."""
        return {"steps": self._steps, "sent_by_all": self._sent_by_all}

    @property
    def local(self) -> dict[str, Tensor]:
        """How far each worker was from its peers, and what its trigger knows."""
        return {"peer_distance": self._peer_distance} | ({} if self.trigger is None else self.trigger.local)

    @property
    def vectors_sent(self) -> int:
        """Of the parameters' size, to each peer."""
        return 1

    @property
    def message_bytes(self) -> int:
        """What a worker sends to each peer in a round, outside of groups."""
        return self.vectors_sent * self.layout.d * self.x.element_size()

    @property
    def _costs(self) -> Costs:
        d, entry = self.layout.d, self.x.element_size()
        messages = self.topology.fan_out
        if self.groups is None:
            round_bytes, merge_bytes = messages * self.message_bytes, all_reduce_wire_bytes(d * entry, self.world.size)
        else:
            part = self.groups.part_size(d)
            round_bytes = entry * (messages * part + (self.group_size - 1) * (part + 1)) if messages else 0
            merge_bytes = self.groups.wire_bytes(d, entry)
        return Costs(self.total_steps, self.period, round_bytes, merge_bytes if self.merge else 0)

    @property
    def temporary_copies(self) -> float:
        """The flow, and what one worker hears, which is as much again if that is everybody; for a trigger, what all hear, and
        where that leads; in groups, of parts, and all together."""
        heard = 1.0 if self.trigger is None else self._degree + 2.0
        return self.vectors_sent * (1.0 + heard) / self.group_size + (3.0 if self.group_size > 1 else 0.0)

    @property
    def description(self) -> str:
        """Who talks to whom, and what that costs."""
        sent, ddp = self._costs.round_bytes, self.period * all_reduce_wire_bytes(4 * self.layout.numel, self.world.size)
        every = "step" if self.period == 1 else f"{self.period} steps"
        share = f", {100 * sent / ddp:.3g}% of DDP's" if ddp else ""
        end = f"{self._schedule.description}; merged at the end" if self.merge else self._schedule.description
        inside = f"gradients inside groups of {self.group_size} in every step; between them " if self.group_size > 1 else ""
        return f"{inside}{self.topology.name}, after every {every} {sent:,} bytes per worker at most{share}{end}"


class GossipConfig(StrategyConfig):
    """What all gossip strategies have."""

    push_sum: ClassVar[bool] = False
    """Whether the strategy takes topologies that keep the mean only with weights that travel along."""
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

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.build()  # which refuses what does not
        return self

    def check_world(self, world_size: int) -> None:
        """The topology must allow so many workers, and suit how they talk."""
        self.topology.check_world(world_size)
        topology = self.topology.build(world_size)
        self.communication.check_topology(topology)
        if not self.push_sum:
            check_keeps_mean(topology)

    def check_survival(self, world_size: int) -> None:
        """Links must go both ways, and what a pair knows of each other must not count."""
        super().check_survival(world_size)
        if self.communication.trigger() is not None:
            raise ValueError(
                f"communication.name={self.communication.name} needs the answers of all peers, and cannot go on when a worker is "
                "lost: take always, sometimes, window or budget, or leave --on-failure at stop"
            )
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
