"""Stochastic gradient push: gossip over one-way links, where a worker gives to whom it reaches and need not hear from anybody.

"Stochastic Gradient Push for Distributed Deep Learning" (arXiv 1811.10792). With P a matrix whose columns sum to 1 (what a worker
does not push it keeps), x a worker's numerator and w its weight, 1 at first, the model that it trains is z = x / w:

    x_i ← Σ_j P_ij (x_j − u_j(z_j))      w_i ← Σ_j P_ij w_j      z_i = x_i / w_i

Σ x and Σ w stay, whoever is heard how often, and z comes to the mean of all. What is held is z itself, and w. In terms of these
a local step moves z by u / w, and a push is a mixing of z whose weights a_ij = P_ij w_j / Σ_k P_ik w_k sum to 1, so that equal
models stay equal to the last bit. Where P is doubly stochastic, w stays 1 and this is D-PSGD, adapting before it combines.

Steps are divided by w, so what keeps w from becoming small keeps them stable: pushes to several, as ``random_push`` by default.

The deviation from the paper: w travels in float64 at the end of the message, whatever the parameters' dtype.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from disttrain.compression.codec import from_bytes
from disttrain.parameters import Layout
from disttrain.strategies.base import strategies
from disttrain.strategies.gossip.engine import Gossip, GossipConfig
from disttrain.topology import Mixing, RandomPushConfig, TopologyConfig, topologies
from disttrain.worlds.surviving import answers_of
from disttrain.worlds.world import World

WEIGHT_BYTES = 8


class StochasticGradientPush(Gossip):
    """Adapt, then push, with weights that say how much of everybody has arrived; for any topology whose columns sum to 1."""

    push_sum: ClassVar[bool] = True

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """All weights are 1."""
        super().begin(x, layout, world, seed)
        self._weight = torch.ones(len(x), 1, dtype=torch.float64, device=x.device)
        self._before = torch.empty_like(x)

    def before_step(self) -> bool:
        """Remember z, from which the optimizer is about to step."""
        self._before.copy_(self.x)
        return True

    def after_step(self) -> None:
        """Bring the step to u / w; after a round's last one, push."""
        self._steps += 1
        self.x += self._before.sub_(self.x).mul_((1 - 1 / self._weight).to(self.x))  # nothing, where w is 1
        mixing = self.round_due()
        if mixing is None:
            return
        self.count(mixing)
        message = torch.cat([self.x, self._weight.view(self.x.dtype)], dim=1)  # only copied from here on: all bits are kept
        flow, distance, weight = self.lane.start(self._pushed, message, mixing).take()
        self.measured(distance)
        self.x += flow
        self._weight.copy_(weight)

    def _pushed(self, message: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor, Tensor]:
        """On the lane: what mixing adds to z, the distance to peers as in :meth:`flows`, and the new weights ``[L, 1]``."""
        heard, d = self.lane.exchange(message, mixing), self.layout.d
        own = self.world.positions
        weight = torch.from_numpy(mixing.kept)[own, None].to(message.device) * from_bytes(message[:, d:], torch.float64)
        arrived = mixing.weights[own].to(message.device) * from_bytes(heard[..., d:], torch.float64)[..., 0]  # [L, k]
        for place in range(arrived.shape[1]):
            weight += arrived[:, place : place + 1]
        flow, distance = self.flows(message[:, :d], answers_of(message[:, :d], heard[..., :d], arrived / weight))
        return flow, distance, weight

    def finish(self) -> Tensor:
        """Σ x / Σ w, or worker 0's own model."""
        if not self.merge:
            return self.evaluation()
        dtype = torch.promote_types(self.x.dtype, torch.float32)
        mean = self.world.mean(torch.cat([self.x * self._weight, self._weight], dim=1).to(dtype))
        return (mean[:, :-1] / mean[:, -1:]).to(self.x.dtype)

    @property
    def metrics(self) -> dict[str, float]:
        """Worker 0's weight, too."""
        return super().metrics | {"push_weight": float(self._weight[0])}

    @property
    def local(self) -> dict[str, Tensor]:
        """The weights, too."""
        return super().local | {"weight": self._weight}

    @property
    def message_bytes(self) -> int:
        """Parameters and weight."""
        return super().message_bytes + WEIGHT_BYTES

    @property
    def temporary_copies(self) -> float:
        """What was heard in a round like the first, what is sent, z before the step, a difference, and the flow."""
        return self.topology.round(0).degree + 4.0


@strategies.register
class StochasticGradientPushConfig(GossipConfig):
    """Gossip over one-way links, the models weighed by how much of everybody has arrived (arXiv 1811.10792)."""

    name: Literal["stochastic_gradient_push"] = "stochastic_gradient_push"
    push_sum: ClassVar[bool] = True
    topology: TopologyConfig = RandomPushConfig()
    """Who pushes to whom in a round."""

    def build(self) -> StochasticGradientPush:
        """The strategy itself."""
        return StochasticGradientPush(**self.settings)


topologies.choose_in(StochasticGradientPushConfig, "topology")
