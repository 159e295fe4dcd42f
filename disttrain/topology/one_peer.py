"""Topologies in which a worker hears from at most one peer in a round: the cheapest rounds, which differ.

    ====================  ====================================  ==================  ==============================
    one_peer_exponential  i hears from i + 2^(t mod ⌈log₂ n⌉)   every n; one way    exact in log₂ n iff n = 2^k
    one_peer_hypercube    pairs that differ in one bit, by bit  n = 2^k; symmetric  exact in log₂ n
    random_matching       pairs drawn anew                      every n; symmetric  never exact (unless n ≤ 2)
    ====================  ====================================  ==================  ==============================

All take the mean of two: weight 1/2. For an n that is no power of two, :func:`~disttrain.topology.base_graph` is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from disttrain import random
from disttrain.topology.base import Topology, TopologyConfig, check_workers, periodic, topologies
from disttrain.topology.mixing import Links, Mixing, both_ways
from disttrain.topology.static import bits, check_power_of_two, flipped


def one_peer_exponential(n: int) -> Topology:
    """In round t, worker i hears from i + 2^(t mod ⌈log₂ n⌉) (mod n): the exponential graph, one distance after the other.

    After a period everybody has the exact mean if n is a power of two, and *only* then: for n = 6, 12 or 24 a fifth of the
    disagreement is left (‖P − J‖₂ = 0.21). It is directed: not for exchanges that may come late, nor for lost workers.

    Ying et al., "Exponential Graph is Provably Efficient for Decentralized Deep Training", arXiv 2110.13363.
    """
    check_workers("one_peer_exponential", n)
    workers, halves = np.arange(n), np.full(n, 0.5)
    rounds = [Links(workers, (workers + 2**j) % n, halves) for j in range(bits(n))]
    return periodic("one_peer_exponential", n, *rounds)


def one_peer_hypercube(n: int) -> Topology:
    """In round t, workers whose numbers differ in bit t mod log₂ n take their mean; everybody has the exact mean after log₂ n.

    Raises:
        ValueError: unless n is a power of two.
    """
    check_power_of_two("one_peer_hypercube", n)
    workers = np.arange(n)
    pairs = [np.stack([workers, peers], 1)[workers < peers] for peers in flipped(n)]
    return periodic("one_peer_hypercube", n, *(both_ways(each, 0.5) for each in pairs))


def random_matching(n: int, seed: int = 0) -> Topology:
    """In each round the workers are paired at random, and pairs take their mean; one is idle if n is odd.

    Args:
        n: workers.
        seed: of the draws; a round's depends on seed and round alone.
    """
    check_workers("random_matching", n)
    return RandomMatching(n, seed)


@dataclass(frozen=True, eq=False)
class RandomMatching(Topology):
    """Pairs drawn by (seed, round), all matchings being equally likely."""

    size: int
    seed: int
    name: str = "random_matching"

    @property
    def period(self) -> None:
        """None: each round is drawn."""
        return None

    def round(self, t: int) -> Mixing:
        """Neighbours in a random order are pairs: O(n log n), and nothing is kept."""
        key = torch.tensor(random.key(self.seed, random.Stream.TOPOLOGY, t))
        order = random.bits(key, self.size).argsort(stable=True).numpy()
        pairs = order[: self.size // 2 * 2].reshape(-1, 2)
        return Mixing.of(self.size, both_ways(pairs, 0.5))

    def is_connected(self) -> bool:
        """Always: sooner or later, everybody meets everybody."""
        return True

    def spectral_gap(self) -> float:
        """1 − √ρ, where ρ = E‖Wx − x̄‖² / ‖x − x̄‖² is what one round leaves, the same for every x.

        A round projects, W² = W, and its m = ⌊n/2⌋ pairs are any with the same probability: E W = I − m/(n(n − 1)) (nI − 11ᵀ).
        So ρ = 1 − m/(n − 1), which is (n − 2) / (2 (n − 1)) for even n and 1/2 for odd n.
        """
        if self.size == 1:
            return 1.0
        return 1 - math.sqrt(1 - self.size // 2 / (self.size - 1))

    @property
    def exact_after(self) -> int | None:
        """Never, but for two workers, whose pair is everybody, or one."""
        return self.size - 1 if self.size <= 2 else None


@topologies.register
class OnePeerExponentialConfig(TopologyConfig):
    """Peers at distances 1, 2, 4, …, one in each round; exact for powers of two only."""

    name: Literal["one_peer_exponential"] = "one_peer_exponential"

    def build(self, size: int, seed: int = 0) -> Topology:
        """For every size."""
        return one_peer_exponential(size)


@topologies.register
class OnePeerHypercubeConfig(TopologyConfig):
    """Pairs whose numbers differ in one bit, one bit in each round."""

    name: Literal["one_peer_hypercube"] = "one_peer_hypercube"

    def build(self, size: int, seed: int = 0) -> Topology:
        """For powers of two."""
        return one_peer_hypercube(size)


@topologies.register
class RandomMatchingConfig(TopologyConfig):
    """Pairs drawn anew in each round, from the run's seed."""

    name: Literal["random_matching"] = "random_matching"

    def build(self, size: int, seed: int = 0) -> Topology:
        """For every size."""
        return random_matching(size, seed)
