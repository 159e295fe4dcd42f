"""CHOCO-SGD: gossip in compressed messages, without an error that stays.

"Decentralized Stochastic Optimization and Gossip Algorithms with Compressed Communication" (arXiv 1902.00340), and for deep
learning "Decentralized Deep Learning with Arbitrary Communication Compression" (arXiv 1907.09356). Every worker i has a replica
x̂_i that all its peers know, for it moves by nothing but what i sends. With C the compressor, after a round's local steps to x_i:

    q_i = C(x_i − x̂_i)      x̂_j ← x̂_j + q_j, wherever it is held      x_i ← x_i + γ Σ_j W_ij (x̂_j − x̂_i)

As workers agree, x_i − x̂_i vanishes, and with it what compression leaves out; the mean over workers is kept whatever C is.
A worker holds its own replica and its flow s_i = Σ_j W_ij (x̂_j − x̂_i), two vectors whatever the number of peers. The paper's
implementation keeps Σ_j W_ij x̂_j instead; of the flow, which is small, and of which both ends of a link add opposite amounts,
nothing but rounding of small numbers adds up over a run.

All this needs peers that stay: whoever hears a worker now and then does not know its replica.
"""

from __future__ import annotations

from typing import Annotated, Literal, Unpack

import torch
from pydantic import Field, SerializeAsAny, field_validator
from torch import Tensor

from disttrain.compression import Compressor, CompressorConfig, Contraction, PowerSGD, compressors
from disttrain.compression.parameterwise import ParameterwiseContraction
from disttrain.compression.quantize import Int8Config
from disttrain.parameters import Layout
from disttrain.strategies.base import strategies
from disttrain.strategies.gossip.communication import AlwaysConfig, BudgetConfig, CommunicationConfig, WindowConfig
from disttrain.strategies.gossip.engine import Gossip, GossipConfig, Settings
from disttrain.topology import Mixing, RingConfig, Topology, TopologyConfig, topologies
from disttrain.worlds.world import World


class Choco(Gossip):
    """Adapt, then combine replicas that move by compressed differences.

    Args:
        compressor: C; an unbiased one is divided by 1 + ω, see :class:`ParameterwiseContraction`.
        consensus_lr: γ, in (0, 1]: the share of the way that is moved; None: the compressor's δ. More is faster up to about twice
            that, and diverges from a few times that on; but ``sign``, whose δ is for the worst vector, does well with 0.5.
        settings: of :class:`Gossip`.

    Raises:
        ValueError: for another consensus_lr; for a compressor without payloads of a worker's own, or a schedule in which only
            some peers talk; in :meth:`begin`, for a topology whose rounds differ.
    """

    def __init__(
        self, compressor: Compressor | PowerSGD, consensus_lr: float | None = None, **settings: Unpack[Settings]
    ) -> None:
        super().__init__(**settings)
        if consensus_lr is not None and not 0 < consensus_lr <= 1:
            raise ValueError(f"consensus_lr must be greater than 0 and at most 1, got {consensus_lr}")
        check_communication(self.communication)
        self.compressor = payload_compressor(compressor)
        self.consensus_lr = self.compressor.nominal_delta if consensus_lr is None else consensus_lr

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """All start alike, so everybody knows everybody's replica."""
        self.contraction = ParameterwiseContraction(self.compressor, layout)  # the schedule asks for a message's bytes
        super().begin(x, layout, world, seed)
        check_topology(self.topology)
        self._replica = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
        self._flow = torch.zeros_like(self._replica)

    def before_step(self) -> bool:
        """Replicas begin where the parameters are by now: all workers may have loaded others since :meth:`begin`."""
        if self.steps == 0:
            self._replica.copy_(self.x)
        return True

    def after_step(self) -> None:
        """After a round's last step: tell the peers, and move towards them."""
        self._steps += 1
        mixing = self.round_due()
        if mixing is None:
            return
        self.count(mixing)
        payload = self.contraction.encode(self.x - self._replica, self.seed, self.steps, self.world.ids)
        own = self.contraction.decode(payload, self._replica.dtype)
        self._flow += self.lane.start(self._flow_of, payload, own, mixing).take()
        self._replica += own
        weights = mixing.weights[self.world.positions].sum(1, keepdim=True).to(own)
        self.measured((self._flow / weights).square_().sum(1, keepdim=True))
        self.x += self._flow.mul(self.consensus_lr).to(self.x.dtype)

    def _flow_of(self, payload: Tensor, own: Tensor, mixing: Mixing) -> Tensor:
        """On the lane: Σ_j W_ij (q_j − q_i), ``[L, d]``."""
        heard = self.lane.exchange(payload, mixing)
        weights, flow = mixing.weights[self.world.positions].to(own), torch.zeros_like(own)
        for place in range(heard.shape[1]):
            difference = self.contraction.decode(heard[:, place], own.dtype).sub_(own)
            flow += difference.mul_(weights[:, place : place + 1])
        return flow

    @property
    def local(self) -> dict[str, Tensor]:
        """The own replica, and what mixing it with those of the peers adds to it."""
        return super().local | {"replica": self._replica, "flow": self._flow}

    @property
    def message_bytes(self) -> int:
        """A payload."""
        return self.contraction.payload_bytes

    @property
    def temporary_copies(self) -> float:
        """What is encoded, the own payload and a peer's decoded, a product, and the flow; and all payloads that are heard."""
        payload = self.contraction.payload_bytes / (self.layout.d * self.x.element_size())
        return 5.0 + (1 + self._degree) * payload

    @property
    def description(self) -> str:
        """The compressor too, and γ."""
        return f"{self.compressor}, consensus_lr {self.consensus_lr:g}: {super().description}"


def payload_compressor(compressor: Compressor | PowerSGD) -> Compressor:
    """The compressor, if a worker can encode its vector alone, and comes nearer to it by that.

    Raises:
        ValueError: if not, saying what to take.
    """
    if isinstance(compressor, PowerSGD):
        raise ValueError("power_sgd is an all-reduce, and gossip has none: take int8, block_top_k, sign or another compressor "
                         "whose payloads are a worker's own")  # fmt: skip
    bound = compressor.bound(2**20)
    if isinstance(bound, Contraction) and not bound.delta > 0:
        raise ValueError(f"{compressor} may be further from a vector than nothing is, so replicas would not follow: take int8 or "
                         "block_top_k")  # fmt: skip
    return compressor


def check_communication(communication: CommunicationConfig) -> None:
    """Raise ValueError if a round may reach some peers only, for they would not know a worker's replica from then on."""
    all_or_nobody = isinstance(communication, WindowConfig) and communication.outside == 0 and not communication.everybody
    if not (isinstance(communication, AlwaysConfig | BudgetConfig) or all_or_nobody):
        raise ValueError(
            f"choco needs rounds in which all peers hear a worker or none do, and {communication.name} is not so: take always, "
            "budget, or window with outside=0 and everybody=false, and a longer period to talk less; or strategy dpsgd"
        )


def check_topology(topology: Topology) -> None:
    """Raise ValueError if a worker's peers differ from round to round, for they would not know its replica."""
    if topology.period != 1:
        raise ValueError(
            f"choco needs peers that stay the same, and in {topology.name} of {topology.size} workers they change from round to "
            "round: take ring, torus, hypercube, exponential, star, complete or edges; or strategy dpsgd"
        )


@strategies.register
class ChocoConfig(GossipConfig):
    """Gossip in compressed messages: replicas that peers know, moved by compressed differences (arXiv 1902.00340)."""

    name: Literal["choco"] = "choco"
    topology: TopologyConfig = RingConfig()
    """Who talks to whom, the same in all rounds."""
    compressor: SerializeAsAny[CompressorConfig] = Int8Config()
    """What becomes of the difference between a worker's parameters and its replica."""
    consensus_lr: Annotated[float, Field(gt=0, le=1)] | None = None
    """γ: the share of the way to its peers' replicas that a worker moves in a round; null: the compressor's δ (1 for identity,
    0.996 for int8, 0.1 for a tenth of the entries). With sign take 0.5."""

    @field_validator("compressor")
    @classmethod
    def _has_payloads(cls, value: CompressorConfig) -> CompressorConfig:
        payload_compressor(value.build())
        return value

    @field_validator("communication")
    @classmethod
    def _reaches_all_peers(cls, value: CommunicationConfig) -> CommunicationConfig:
        check_communication(value)
        return value

    def check_world(self, world_size: int) -> None:
        """Peers must stay the same."""
        super().check_world(world_size)
        check_topology(self.topology.build(world_size))

    def build(self) -> Choco:
        """The strategy itself."""
        return Choco(self.compressor.build(), self.consensus_lr, **self.settings)


topologies.choose_in(ChocoConfig, "topology")
compressors.choose_in(ChocoConfig, "compressor")
