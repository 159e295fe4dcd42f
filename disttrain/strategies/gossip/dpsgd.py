"""D-PSGD: a local step and a mixing with the peers' parameters.

"Can Decentralized Algorithms Outperform Centralized Algorithms?" (arXiv 1705.09056). With W the round's mixing matrix, u_i the
optimizer's update at x_i:

    combine while adapt    x_i ← Σ_j W_ij x_j − u_i(x_i)       the exchange of x runs while forward and backward compute u(x)
    adapt, then combine    x_i ← Σ_j W_ij (x_j − u_j(x_j))     workers wait for it

The first is the paper's. It hides the exchange without any staleness and without a copy: parameters do not change until the
optimizer's step. In the second workers are closer to each other: their distance is what W leaves of the first one's.
"""

from __future__ import annotations

from typing import Literal, get_args

from disttrain.strategies.base import strategies
from disttrain.strategies.gossip.communication import CommunicationConfig
from disttrain.strategies.gossip.engine import Gossip, GossipConfig
from disttrain.topology import TopologyConfig

Order = Literal["combine_while_adapt", "adapt_then_combine"]


class DPSGD(Gossip):
    """Mixing with peers, in either order.

    Args:
        topology: see :class:`Gossip`.
        communication: see :class:`Gossip`.
        period: see :class:`Gossip`.
        merge: see :class:`Gossip`.
        order: ``combine_while_adapt`` or ``adapt_then_combine``.

    Raises:
        ValueError: if these do not fit together.
    """

    def __init__(
        self,
        topology: TopologyConfig,
        communication: CommunicationConfig,
        period: int = 1,
        merge: bool = True,
        order: Order = "combine_while_adapt",
    ) -> None:
        super().__init__(topology, communication, period, merge)
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
        self.order = order

    def before_step(self) -> bool:
        """Mix what was exchanged beside forward and backward."""
        self.mix()
        return True

    def after_step(self) -> None:
        """Start the round's exchange, or make it now."""
        self._steps += 1
        self.post()
        if self.order == "adapt_then_combine":
            self.mix()


@strategies.register
class DPSGDConfig(GossipConfig):
    """A local step and a mixing with some peers' parameters, hidden behind forward and backward (arXiv 1705.09056)."""

    name: Literal["dpsgd"] = "dpsgd"
    order: Order = "combine_while_adapt"
    """Whether the exchange runs beside the computation of the step that it is mixed with, or after it."""

    def build(self) -> DPSGD:
        """The strategy itself."""
        return DPSGD(self.topology, self.communication, self.period, self.merge, self.order)
