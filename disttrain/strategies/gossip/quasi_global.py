"""Quasi-global momentum: each worker's momentum is of what the last rounds have moved it by, its peers' part included.

"Quasi-Global Momentum: Accelerating Decentralized Deep Learning on Heterogeneous Data" (arXiv 2102.04761). A worker's own
momentum follows its own data, away from the others; what it has moved by from round to round is nearer to what all have moved by.
With m that momentum, in the unit of parameters (the paper's, times the learning rate), in a round of H steps that begins at a:

    in each step   x ← x − u(x) − β m
    after them     x ← Σ_j W_ij x_j,  m ← μ m + (1 − μ) (a − x) / H

The optimizer inside should have no momentum of its own.
"""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from pydantic import Field
from torch import Tensor

from disttrain.parameters import Layout
from disttrain.strategies.base import strategies
from disttrain.strategies.gossip.engine import Gossip, GossipConfig, Settings
from disttrain.worlds.world import World


class QuasiGlobalMomentum(Gossip):
    """Adapt with the momentum of rounds, then combine.

    Args:
        momentum: β, how much of m is added to each local step.
        average: μ, how much of m stays after a round.
        settings: of :class:`Gossip`.

    Raises:
        ValueError: unless both are in [0, 1).
    """

    adds_flows = True
    survives_peers = True

    def __init__(self, momentum: float = 0.9, average: float = 0.9, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        if not (0 <= momentum < 1 and 0 <= average < 1):
            raise ValueError(f"momentum and average must be at least 0 and less than 1, got {momentum} and {average}")
        self.momentum, self.average = momentum, average

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Nothing has moved yet."""
        super().begin(x, layout, world, seed)
        self._momentum, self._start = torch.zeros_like(x), x.clone()

    def before_step(self) -> bool:
        """The first round begins where the parameters are by now: somebody may have loaded others since :meth:`begin`."""
        if self.steps == 0:
            self._start.copy_(self.x)
        return True

    def after_step(self) -> None:
        """Add the momentum; after a round's last step mix, and see what it has moved."""
        self._steps += 1
        self.x.sub_(self._momentum * self.momentum)
        if self.steps % self.period:
            return
        mixing = self.round_due()
        if mixing is not None:
            self.x += self.flow_now(mixing, self.x)
        moved = (self._start - self.x).div_(self.period)
        self._momentum.mul_(self.average).add_(moved.mul_(1 - self.average))
        self._start.copy_(self.x)

    @property
    def local(self) -> dict[str, Tensor]:
        """The momentum too, and where the round began."""
        return super().local | {"momentum": self._momentum, "start": self._start}


@strategies.register
class QuasiGlobalMomentumConfig(GossipConfig):
    """D-PSGD with a momentum of what rounds have moved, for workers whose data differ (arXiv 2102.04761)."""

    name: Literal["quasi_global_momentum"] = "quasi_global_momentum"
    momentum: float = Field(0.9, ge=0, lt=1)
    """β: how much of the momentum is added to each local step."""
    average: float = Field(0.9, ge=0, lt=1)
    """μ: how much of the momentum stays after a round."""

    def build(self) -> QuasiGlobalMomentum:
        """The strategy itself."""
        return QuasiGlobalMomentum(self.momentum, self.average, **self.settings)
