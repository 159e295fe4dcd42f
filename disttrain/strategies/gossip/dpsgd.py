"""D-PSGD: a local step and a mixing with the peers' parameters.

"Can Decentralized Algorithms Outperform Centralized Algorithms?" (arXiv 1705.09056). With W the round's mixing matrix, u_i the
optimizer's update at x_i:

    combine while adapt    x_i ← Σ_j W_ij x_j − u_i(x_i)       the exchange of x runs while forward and backward compute u(x)
    adapt, then combine    x_i ← Σ_j W_ij (x_j − u_j(x_j))     workers wait for it

The first is the paper's. It hides the exchange without any staleness and without a copy: parameters do not change until the
optimizer's step. In the second workers are closer to each other: their distance is what W leaves of the first one's.

Where a step is too short to hide an exchange, it may take D rounds more. A copy x' of the parameters is sent, and its flow added
when it is due, in every worker at the same step, so that the sum is kept:

    D rounds late          x_i ← x_i + Σ_j W'_ij (x'_j − x'_i) − u_i(x_i),    W' and x' those of D rounds before

Which weights are stable then is in `delay.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack, get_args

import torch
from pydantic import Field
from torch import Tensor

from disttrain.compression.reduce import Dense
from disttrain.parameters import Layout
from disttrain.strategies.base import strategies
from disttrain.strategies.gossip.delay import LateFlows, check_delay
from disttrain.strategies.gossip.engine import Gossip, GossipConfig, Settings
from disttrain.topology import Mixing, damped
from disttrain.worlds.groups import check_division
from disttrain.worlds.in_flight import InFlight
from disttrain.worlds.world import Lane, World

Order = Literal["combine_while_adapt", "adapt_then_combine"]


class DPSGD(Gossip):
    """Mixing with peers, in either order.

    Args:
        order: ``combine_while_adapt`` or ``adapt_then_combine``.
        delay: D: rounds that an exchange may take beyond the computation of one step.
        mixing_rate: γ: how much of the way to the topology's mixing workers go, W_γ = I − γ (I − W).
        group_size: workers of a site: they average gradients in every step, and the topology is of sites.
        settings: of :class:`Gossip`.

    Raises:
        ValueError: if these do not fit together; in :meth:`begin`, if the delay is too long for this topology.
    """

    adds_flows = True
    survives_peers = True

    def __init__(
        self,
        order: Order = "combine_while_adapt",
        delay: int = 0,
        mixing_rate: float = 1.0,
        group_size: int = 1,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
        if not (delay >= 0 and 0 < mixing_rate <= 1):
            raise ValueError(f"delay must be at least 0 and mixing_rate in (0, 1], got {delay} and {mixing_rate}")
        if delay and order == "adapt_then_combine":
            raise ValueError(f"order=adapt_then_combine waits for every exchange, so delay must be 0, got {delay}")
        if delay and self.trigger is not None:
            raise ValueError(
                f"communication.name=triggered decides by what the last exchange has measured, so delay must be 0, got {delay}"
            )
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        self.group_size, self.reducer = group_size, Dense() if group_size > 1 else None
        self.order, self.delay, self.mixing_rate = order, delay, mixing_rate

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Nothing is under way."""
        super().begin(x, layout, world, seed)
        check_delay(self.topology, self.delay, self.mixing_rate, self.communication.may_reach_all)
        self._under_way = torch.zeros(1, 1, dtype=torch.bool)
        self._flight: InFlight | None = None
        self._late = LateFlows(self.delay, x) if self.delay else None

    def round_due(self) -> Mixing | None:
        """At the mixing rate."""
        mixing = super().round_due()
        return None if mixing is None else damped(mixing, self.mixing_rate)

    def before_step(self) -> bool:
        """Mix what was exchanged beside forward and backward, or what is due now."""
        number, rest = divmod(self.steps, self.period)
        if self._late is None:
            self._mix()
        elif not rest:
            self._mix_late(self._late, number - self.delay)
        return True

    def after_step(self) -> None:
        """Start the round's exchange, or make it now; until they are mixed, the parameters are lent, if not a copy."""
        self._steps += 1
        mixing = self.round_due()
        if mixing is not None:
            self.count(mixing)
            if self._late is not None:
                self._late.post(self.steps // self.period, self.start(mixing, self.x.clone()))
                return
            self._under_way.fill_(True)
            self._flight = self.start(mixing, self.x)
        if self.order == "adapt_then_combine":
            self._mix()

    def finish(self) -> Tensor:
        """With all rounds mixed."""
        if self._late is None:
            self._mix()
        else:
            last = self.steps // self.period
            for number in range(last - self.delay, last + 1):
                self._mix_late(self._late, number)
        return super().finish()

    def join(self) -> None:
        """The other one adds what it had under way."""
        super().join()
        self._under_way.fill_(False)

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

    def _mix_late(self, late: LateFlows, number: int) -> None:
        arrived = late.take(number)
        if arrived is not None:
            flow, distance = arrived
            self.measured(distance)
            self.x += flow

    @property
    def gradient_lanes(self) -> Sequence[Lane]:
        """Those inside groups."""
        return () if self.groups is None else self.groups.steps

    @property
    def shared(self) -> dict[str, Tensor]:
        """Which exchanges are under way, too."""
        return super().shared | ({"under_way": self._under_way} if self._late is None else self._late.shared)

    @property
    def local(self) -> dict[str, Tensor]:
        """Late flows, too: one for each round of the delay, and the newest."""
        return super().local | ({} if self._late is None else self._late.local)

    @property
    def description(self) -> str:
        """How late, too."""
        late = f"; added {self.delay} rounds late" if self.delay else ""
        return super().description + late


@strategies.register
class DPSGDConfig(GossipConfig):
    """A local step and a mixing with some peers' parameters, hidden behind forward and backward (arXiv 1705.09056)."""

    name: Literal["dpsgd"] = "dpsgd"
    order: Order = "combine_while_adapt"
    """Whether the exchange runs beside the computation of the step that it is mixed with, or after it."""
    delay: int = Field(0, ge=0)
    """D: rounds that an exchange may take beyond the computation of one step; each costs memory for one more model."""
    mixing_rate: float = Field(1.0, gt=0, le=1)
    """γ: how much of the way to the topology's mixing workers go; the longer the delay, the less is stable."""
    group_size: int = Field(1, ge=1)
    """Workers of a site: consecutive ranks that average gradients in every step, as under ddp, while the topology is of sites,
    whose members exchange a part of the parameters each; 1: every worker is alone."""

    def check_world(self, world_size: int) -> None:
        """The delay must not be too long for this topology, either."""
        check_division(world_size, self.group_size)
        sites = world_size // self.group_size
        super().check_world(sites)
        check_delay(self.topology.build(sites), self.delay, self.mixing_rate, self.communication.may_reach_all)

    def check_survival(self, world_size: int) -> None:
        """Where answers may be late or never come, nothing may count on when they do."""
        if self.delay or self.group_size > 1:
            raise ValueError(
                f"delay={self.delay} and group_size={self.group_size} count on every worker: to go on when some are lost they "
                "must be 0 and 1, or leave --on-failure at stop"
            )
        super().check_survival(world_size)

    def check_steps(self, steps: int) -> None:
        """What is late must come before the end."""
        super().check_steps(steps)
        due = self.period * (1 + self.delay)
        if self.delay and steps <= due:
            raise ValueError(
                f"steps={steps} is too short for delay={self.delay} rounds of period={self.period} steps: the first flow is due "
                f"after step {due}; take a shorter delay"
            )

    def build(self) -> DPSGD:
        """The strategy itself."""
        return DPSGD(self.order, self.delay, self.mixing_rate, self.group_size, **self.settings)
