"""NoLoCo: DiLoCo's outer momentum without an all-reduce, each worker with the anchors and deltas of its peers of the round.

"NoLoCo: No-all-reduce Low Communication Training Method for Large Models" (arXiv 2506.10911). After H local steps from its anchor
φ to x, with W[v] = Σ_j W_ij v_j the mixing (the paper's: the mean with one random peer, so take ``random_matching``):

    d ← α d + β W[x − φ] + γ (W[φ] − φ)        φ ← φ + d        x ← φ

α, β, γ are ``outer_momentum``, ``outer_lr`` and ``pull``. The last term is what keeps the anchors together. In a round without a
peer W is the identity.
"""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from pydantic import Field
from torch import Tensor

from disttrain.parameters import Layout
from disttrain.strategies.base import strategies
from disttrain.strategies.gossip.engine import Gossip, GossipConfig, Settings
from disttrain.topology import RandomMatchingConfig, TopologyConfig, topologies
from disttrain.worlds.world import World


class NoLoCo(Gossip):
    """An outer step with momentum, with peers instead of everybody.

    Args:
        outer_lr: β, of the mixed delta.
        outer_momentum: α.
        pull: γ, towards the peers' anchors.
        settings: of :class:`Gossip`.

    Raises:
        ValueError: unless the learning rate and the pull are positive, and the momentum in [0, 1).
    """

    def __init__(
        self, outer_lr: float = 0.7, outer_momentum: float = 0.5, pull: float = 0.7, **settings: Unpack[Settings]
    ) -> None:
        super().__init__(**settings)
        if not (outer_lr > 0 and 0 <= outer_momentum < 1 and pull > 0):
            raise ValueError(
                "outer_lr and pull must be positive, and outer_momentum at least 0 and less than 1, got "
                f"{outer_lr}, {pull} and {outer_momentum}"
            )
        self.outer_lr, self.outer_momentum, self.pull = outer_lr, outer_momentum, pull

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Anchors and momenta, one of each for every worker."""
        super().begin(x, layout, world, seed)
        self._anchor, self._momentum = x.clone(), torch.zeros_like(x)

    def before_step(self) -> bool:
        """The first round begins where the parameters are by now: somebody may have loaded others since :meth:`begin`."""
        if self.steps == 0:
            self._anchor.copy_(self.x)
        return True

    def after_step(self) -> None:
        """After a round's last step: the outer one."""
        self._steps += 1
        if self.steps % self.period:
            return
        delta, mixing = self.x - self._anchor, self.round_due()
        self._momentum *= self.outer_momentum
        if mixing is not None:
            to_anchors, to_deltas = self.flow_now(mixing, torch.cat([self._anchor, delta], dim=1)).chunk(2, dim=1)
            delta += to_deltas
            self._momentum += to_anchors.mul(self.pull)
        self._momentum += delta.mul_(self.outer_lr)
        self._anchor += self._momentum
        self.x.copy_(self._anchor)

    @property
    def vectors_sent(self) -> int:
        """Anchor and delta."""
        return 2

    @property
    def local(self) -> dict[str, Tensor]:
        """Anchor and outer momentum."""
        return super().local | {"anchor": self._anchor, "momentum": self._momentum}


@strategies.register
class NoLoCoConfig(GossipConfig):
    """DiLoCo's outer momentum with a random peer instead of an all-reduce (arXiv 2506.10911)."""

    name: Literal["noloco"] = "noloco"
    period: int = Field(50, ge=1)
    """H: local steps in a round."""
    topology: TopologyConfig = RandomMatchingConfig()
    """Who talks to whom in a round."""
    outer_lr: float = Field(0.7, gt=0)
    """β, of the mixed delta."""
    outer_momentum: float = Field(0.5, ge=0, lt=1)
    """α."""
    pull: float = Field(0.7, gt=0)
    """γ, towards the peers' anchors."""

    def build(self) -> NoLoCo:
        """The strategy itself."""
        return NoLoCo(self.outer_lr, self.outer_momentum, self.pull, **self.settings)


topologies.choose_in(NoLoCoConfig, "topology")
