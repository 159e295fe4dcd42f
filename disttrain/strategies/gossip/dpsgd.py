"""D-PSGD: a local step and a mixing with the peers' parameters.

"Can Decentralized Algorithms Outperform Centralized Algorithms?" (arXiv 1705.09056). With W the round's mixing matrix, u_i the
optimizer's update at x_i:

    combine while adapt    x_i ← Σ_j W_ij x_j − u_i(x_i)       the exchange of x runs while forward and backward compute u(x)
    adapt, then combine    x_i ← Σ_j W_ij (x_j − u_j(x_j))     workers wait for it

The first is the paper's. It hides the exchange without any staleness and without a copy: parameters do not change until the
optimizer's step. In the second workers are closer to each other: their distance is what W leaves of the first one's.
"""

from __future__ import annotations

from typing import Literal, Unpack, get_args

import torch
from torch import Tensor

from disttrain.parameters import Layout
from disttrain.strategies.base import strategies
from disttrain.strategies.gossip.engine import Gossip, GossipConfig, Settings
from disttrain.worlds.in_flight import InFlight
from disttrain.worlds.world import World

Order = Literal["combine_while_adapt", "adapt_then_combine"]


class DPSGD(Gossip):
    """Mixing with peers, in either order.

    Args:
        order: ``combine_while_adapt`` or ``adapt_then_combine``.
        settings: of :class:`Gossip`.

    Raises:
        ValueError: if these do not fit together.
    """

    survives_peers = True

    def __init__(self, order: Order = "combine_while_adapt", **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
        self.order = order

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Nothing is under way."""
        super().begin(x, layout, world, seed)
        self._under_way = torch.zeros(1, 1, dtype=torch.bool)
        self._flight: InFlight | None = None

    def before_step(self) -> bool:
        """Mix what was exchanged beside forward and backward."""
        self._mix()
        return True

    def after_step(self) -> None:
        """Start the round's exchange, or make it now; until they are mixed, the parameters are lent."""
        self._steps += 1
        mixing = self.round_due()
        if mixing is not None:
            self.count(mixing)
            self._under_way.fill_(True)
            self._flight = self.start(mixing, self.x)
        if self.order == "adapt_then_combine":
            self._mix()

    def finish(self) -> Tensor:
        """With the last round mixed."""
        self._mix()
        return super().finish()

    def _mix(self) -> None:
        if not self._under_way:
            return
        if self._flight is None:  # a resumed run has the parameters that were under way, and sends them again
            mixing = self.round_due()
            assert mixing is not None
            self._flight = self.start(mixing, self.x)
        flow, self._flight = self.land(self._flight), None
        self._under_way.fill_(False)
        self.x += flow

    @property
    def shared(self) -> dict[str, Tensor]:
        """Whether an exchange is under way, too."""
        return super().shared | {"under_way": self._under_way}


@strategies.register
class DPSGDConfig(GossipConfig):
    """A local step and a mixing with some peers' parameters, hidden behind forward and backward (arXiv 1705.09056)."""

    name: Literal["dpsgd"] = "dpsgd"
    order: Order = "combine_while_adapt"
    """Whether the exchange runs beside the computation of the step that it is mixed with, or after it."""

    def build(self) -> DPSGD:
        """The strategy itself."""
        return DPSGD(self.order, **self.settings)
