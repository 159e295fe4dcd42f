"""Gradient tracking: every worker steps by an estimate of the mean gradient, so that different data no longer pull workers apart.

"Harnessing Smoothness to Accelerate Distributed Optimization" (arXiv 1605.07112), adapting before combining as "NEXT: In-Network
Nonconvex Optimization" (arXiv 1602.00591) does. With g_i a worker's own gradient at x_i and u the optimizer's update for y:

    y_i ← Σ_j W_ij y_j + g_i − g_i of the step before,      x_i ← Σ_j W_ij (x_j − u_j(y_j))

The mean of all y is always that of the last gradients. Parameters and y travel together: twice the bytes of D-PSGD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from disttrain.parameters import Layout, Unit
from disttrain.strategies.base import strategies
from disttrain.strategies.gossip.engine import Gossip, GossipConfig
from disttrain.worlds.world import World


class GradientTracking(Gossip):
    """Steps by the tracked mean gradient, then combines; in a round without exchange y is carried on by each worker alone."""

    adds_flows = True

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Before the first gradient all estimates are zero."""
        super().begin(x, layout, world, seed)
        self._tracked, self._last = torch.zeros_like(x), torch.zeros_like(x)

    def reduce(self, units: Sequence[Unit], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Bring the estimates up to date with the own gradients; what is not finite counts for nothing, and skips the step."""
        estimates = []
        for unit, gradient in zip(units, gradients, strict=True):
            place = slice(unit.offset, unit.offset + unit.numel)
            tracked, last = self._tracked[:, place], self._last[:, place]
            finite = gradient.isfinite().all(1, keepdim=True)
            tracked += torch.where(finite, gradient - last, 0.0)
            last.copy_(torch.where(finite, gradient, last))
            estimates.append(torch.where(finite, tracked, gradient))
        return estimates

    def after_step(self) -> None:
        """Mix parameters and estimates."""
        self._steps += 1
        mixing = self.round_due()
        if mixing is not None:
            to_x, to_tracked = self.flow_now(mixing, torch.cat([self.x, self._tracked], dim=1)).chunk(2, dim=1)
            self.x += to_x
            self._tracked += to_tracked

    @property
    def vectors_sent(self) -> int:
        """Parameters and estimates."""
        return 2

    @property
    def local(self) -> dict[str, Tensor]:
        """The estimate of the mean gradient, and the own last gradient."""
        return super().local | {"tracked": self._tracked, "last": self._last}


@strategies.register
class GradientTrackingConfig(GossipConfig):
    """D-PSGD by an estimate of the mean gradient, for workers whose data differ (arXiv 1605.07112)."""

    name: Literal["gradient_tracking"] = "gradient_tracking"

    def build(self) -> GradientTracking:
        """The strategy itself."""
        return GradientTracking(**self.settings)
