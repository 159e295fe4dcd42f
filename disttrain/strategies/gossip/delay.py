"""How late flows may be added: by how much workers may mix where that takes effect only D rounds later.

With W the mixing of every round, x(t + 1) = x(t) − (I − W) x(t − D). Along an eigenvector of I − W with eigenvalue μ that is
z^(D+1) − z^D + μ = 0, whose roots are all inside the unit circle if and only if

    0 < μ < 2 sin(π / (2 (2D + 1))):    2 for D = 0, then 1, 0.618, 0.445, 0.347, …

(Levin and May, "A note on difference-delay equations", Theoretical Population Biology 9, 1976). Beyond it workers overshoot their
peers by more in every round. Mixing at a rate γ, W_γ = I − γ (I − W), makes every μ smaller by that factor.

Where rounds differ, such as matchings, the largest μ of any of them has to be below the bound. That is a rule and no theorem, on
the safe side wherever it was tried (`tests/strategies/gossip/test_delay.py`): such rounds take turns, and a worker that nobody
names in a round cannot overshoot in it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from disttrain.topology import Mixing, Topology
from disttrain.worlds.in_flight import InFlight

DENSE = 512
"""Up to how many workers eigenvalues are computed; of more, bounded."""


def stability_bound(delay: int) -> float:
    """What the eigenvalues of I − W must be below where flows are added ``delay`` rounds late."""
    return 2 * math.sin(math.pi / (2 * (2 * delay + 1)))


def largest_eigenvalue(mixing: Mixing) -> float:
    """Of I − W of a symmetric round; of many workers an upper bound, after Gershgorin, exact for matchings and regular graphs
    with two colours."""
    if mixing.size > DENSE:
        return 2 * float(mixing.weights.sum(1).max())
    identity = torch.eye(mixing.size, dtype=torch.float64)
    return float(torch.linalg.eigvalsh(identity - torch.from_numpy(mixing.matrix())).max())


def check_delay(topology: Topology, delay: int, mixing_rate: float, everybody: bool = False) -> None:
    """Look whether workers agree in the end if flows are added late.

    Args:
        topology: who mixes.
        delay: D, in rounds.
        mixing_rate: γ.
        everybody: whether all mix with all in some rounds, whatever the topology says.

    Raises:
        ValueError: if they do not, or if the topology is not symmetric.
    """
    if not delay or topology.size == 1:
        return
    if not topology.symmetric:
        raise ValueError(f"delay={delay} needs a topology in which whoever hears from a peer is heard by it, and {topology.name} "
                         "is one-way: take base_graph, random_matching or ring, or delay=0")  # fmt: skip
    steepest = max(largest_eigenvalue(topology.round(t)) for t in range(topology.period or 1))
    steepest = max(steepest, 1.0 if everybody else 0.0)
    bound = stability_bound(delay)
    if mixing_rate * steepest < bound * (1 - 1e-9):
        return
    rule = "" if topology.period == 1 else ", to be on the safe side where rounds differ"
    raise ValueError(
        f"with delay={delay} workers would overshoot their peers by more and more: {topology.name} of {topology.size} workers "
        f"mixes by up to {mixing_rate * steepest:.3g} (mixing_rate × the largest eigenvalue of I − W), which must be less than "
        f"2 sin(π / (2 (2·delay + 1))) = {bound:.3g}{rule}; "
        f"take mixing_rate={_largest_below(bound / steepest):.3g} or less, or a shorter delay"
    )


def _largest_below(limit: float) -> float:
    """The largest number of three digits that is less than ``limit``."""
    digit = 10.0 ** (math.floor(math.log10(limit)) - 2)
    return (math.ceil(limit / digit - 1e-6) - 1) * digit


class LateFlows:
    """Flows under way, each with a distance ``[L, 1]``, by the number of their round: at most ``delay + 1`` at a time.

    Args:
        delay: D, rounds that a flow is late.
        like: ``[L, d]``, of the flows' shape.
    """

    def __init__(self, delay: int, like: Tensor) -> None:
        self._like, self._slots = like, delay + 1
        self._flights: list[InFlight | None] = [None] * self._slots
        self._has_landed = torch.zeros(1, self._slots, dtype=torch.bool)
        self._flows: Tensor | None = None  # what came of those that a checkpoint had to wait for, [L, D + 1, d]
        self._distances = like.new_zeros(len(like), self._slots)

    def post(self, number: int, flight: InFlight) -> None:
        """Round ``number``'s exchange is under way."""
        slot = number % self._slots
        assert self._flights[slot] is None, "a round's flow is taken before its place is needed"
        self._flights[slot] = flight

    def take(self, number: int) -> tuple[Tensor, Tensor] | None:
        """Round ``number``'s flow and distance, fresh, once; None if nothing was exchanged in it."""
        slot = number % self._slots
        if bool(self._has_landed[0, slot]):
            assert self._flows is not None
            landed = self._flows[:, slot].clone(), self._distances[:, slot : slot + 1].clone()
            self._has_landed[0, slot] = False
            if not self._has_landed.any():
                self._flows = None  # no checkpoint needs it any more
            return landed
        flight, self._flights[slot] = self._flights[slot], None
        return None if flight is None else flight.take()

    def _settle(self) -> Tensor:
        """Wait for all that is under way, and keep it for when it is due."""
        if self._flows is None:
            self._flows = self._like.new_zeros(len(self._like), self._slots, self._like.shape[1])
        for slot in range(self._slots):
            if self._flights[slot] is not None:
                landed = self.take(slot)
                assert landed is not None
                self._flows[:, slot], self._distances[:, slot : slot + 1] = landed
                self._has_landed[0, slot] = True
        return self._flows

    @property
    def shared(self) -> dict[str, Tensor]:
        """Which are under way; waits for them."""
        self._settle()
        return {"late": self._has_landed}

    @property
    def local(self) -> dict[str, Tensor]:
        """Those under way; waits for them."""
        return {"late_flows": self._settle(), "late_distances": self._distances}
