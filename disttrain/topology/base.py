"""The contract of a topology: a pure function from a round's number to its mixing, the same on every worker.

A topology needs no process group and keeps no state, so that it can be drawn, checked and simulated anywhere. A kind defines
:meth:`Topology.round`; the rest follows.

Every round's matrix W is doubly stochastic: nonnegative, with rows that sum to 1 (equal models stay as they are) and columns that
sum to 1 (the mean over the workers stays what it is). A topology of one-way links that has columns only says so by
:attr:`Topology.doubly_stochastic`; strategies refuse it, but for those that carry weights along.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from disttrain.component import ComponentConfig, Registry
from disttrain.topology import spectral
from disttrain.topology.mixing import Floats, Links, Mixing, together


class Topology:
    """Who hears from whom, in every round."""

    name: str
    size: int
    """The number of workers."""

    @property
    def period(self) -> int | None:
        """After how many rounds it begins anew; None: never, each round is drawn."""
        raise NotImplementedError(f"{type(self).__name__} must define period")

    def round(self, t: int) -> Mixing:
        """Round ``t`` = 0, 1, …"""
        raise NotImplementedError(f"{type(self).__name__} must define round()")

    def matrix(self, t: int = 0) -> Floats:
        """W of round ``t``, float64 ``[size, size]``: row i is what worker i makes of everybody. For looking at."""
        return self.round(t).matrix()

    @property
    def degree(self) -> int:
        """The most peers that a worker hears from in one round."""
        return max(mixing.degree for mixing in self._typical)

    @property
    def symmetric(self) -> bool:
        """Whether, in every round, whoever hears from a peer is heard by it, with the same weight."""
        return all(mixing.is_symmetric for mixing in self._typical)

    @property
    def fan_out(self) -> int:
        """The most peers that a worker sends to in one round: how many messages that costs it."""
        return max(int(np.bincount(mixing.links.senders, minlength=self.size).max()) for mixing in self._typical)

    @property
    def doubly_stochastic(self) -> bool:
        """Whether every round's rows sum to 1 as its columns do."""
        return all(mixing.is_doubly_stochastic for mixing in self._typical)

    @property
    def links(self) -> Links:
        """The links of all rounds of a period, one after the other; of a topology that draws, those of round 0."""
        return together(mixing.links for mixing in self._typical)

    def is_connected(self) -> bool:
        """Whether news of every worker reaches every other in the end; if not, there will be no consensus."""
        return len(spectral.components(self.links, self.size)) == 1

    def spectral_gap(self) -> float:
        """1 − ‖P − J‖₂, where P is the product of one whole period's rounds; in [0, 1]; 0 if it is not connected.

        O(n³). A topology that draws its rounds says what it gives instead.
        """
        return spectral.spectral_gap(spectral.product(self._matrices, self.size))

    @property
    def exact_after(self) -> int | None:
        """After how many rounds, counted from round 0 or a multiple of the period, all have the exact mean; None: never."""
        return spectral.exact_after(self._matrices, self.size)

    def is_finite_time(self) -> bool:
        """Whether a period's rounds bring everybody to the exact mean (to 1e-10, in float64)."""
        return self.exact_after is not None

    @property
    def _typical(self) -> list[Mixing]:
        """The rounds of one period; or one, whose degree and symmetry every drawn round shares."""
        return [self.round(t) for t in range(self.period or 1)]

    @property
    def _matrices(self) -> list[Floats]:
        return [mixing.matrix() for mixing in self._typical]


@dataclass(frozen=True, eq=False)
class Periodic(Topology):
    """A topology whose rounds are known: round t is ``rounds[t mod period]``."""

    name: str
    size: int
    rounds: tuple[Mixing, ...]

    @property
    def period(self) -> int:
        """The number of its rounds."""
        return len(self.rounds)

    def round(self, t: int) -> Mixing:
        """Round ``t`` = 0, 1, …"""
        return self.rounds[t % self.period]


def periodic(name: str, size: int, *rounds: Links) -> Topology:
    """The topology that goes through these rounds, over and over; one round without any link, if there are none."""
    return Periodic(name, size, tuple(Mixing.of(size, links) for links in rounds or (together(()),)))


def check_keeps_mean(topology: Topology) -> None:
    """Raise ValueError unless workers that mix by this topology keep their mean without further ado."""
    if not topology.doubly_stochastic:
        raise ValueError(
            f"under {topology.name}, {topology.size} workers lose the mean of all models, for some are heard more than others; "
            "take random_matching, base_graph or exponential; or strategy stochastic_gradient_push, which weighs models by it"
        )


def check_workers(name: str, n: int) -> None:
    """Raise ValueError unless there are workers at all."""
    if n < 1:
        raise ValueError(f"{name} needs at least one worker, got {n}")


class TopologyConfig(ComponentConfig):
    """What every topology's config has."""

    def build(self, size: int, seed: int = 0) -> Topology:
        """The topology of ``size`` workers; ``seed`` is the run's, for those that draw.

        Raises:
            ValueError: if so many workers cannot be connected so; it says which numbers can, and what to take instead.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def check_world(self, size: int) -> None:
        """Raise ValueError if so many workers cannot be connected so."""
        self.build(size)


topologies: Registry[TopologyConfig] = Registry("strategy.topology", default="base_graph")
