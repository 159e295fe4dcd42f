"""Topologies whose rounds are all the same: a graph, and a weight for each of its edges.

An undirected graph gets Metropolis–Hastings weights, w_ij = 1 / (1 + max(d_i, d_j)), where d are degrees: symmetric and doubly
stochastic on any graph, and known to a worker that knows its neighbours' degrees. On a regular graph that is 1 / (d + 1) for
every neighbour, and as much for a worker itself.

None of these reaches the exact mean in finitely many rounds, but for the complete graph. Spectral gaps of n workers:

    ===========  ===========================================  =============================
    ring         (2/3) (1 − cos(2π/n)), n ≥ 3                 0.0128 at n = 32
    torus        (2/5) (1 − cos(2π/m)), sides ≥ 3, longer m   0.117 at 8 × 8
    hypercube    2 / (log₂ n + 1), n ≥ 2                      0.333 at n = 32
    exponential  2 / (⌈log₂ n⌉ + 1) if n is even, else more   0.333 at n = 32
    star         1 / n, n ≥ 3                                 0.031 at n = 32
    complete     1
    ===========  ===========================================  =============================
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from disttrain.topology.base import Topology, TopologyConfig, check_workers, periodic, topologies
from disttrain.topology.mixing import Ints, Links, both_ways
from disttrain.topology.spectral import components

if TYPE_CHECKING:
    import networkx as nx


def ring(n: int) -> Topology:
    """Each worker and its two neighbours, weights 1/3; of two workers, the mean."""
    check_workers("ring", n)
    workers = np.arange(n)
    return metropolis("ring", n, np.stack([workers, np.roll(workers, -1)], 1))


def torus(n: int, rows: int | None = None) -> Topology:
    """A grid whose borders meet: four neighbours, weights 1/5; three where a side is 2, for both its neighbours are one.

    Args:
        n: workers, numbered row by row.
        rows: the grid's; None: as near to a square as n allows.

    Raises:
        ValueError: if n is prime, or ``rows`` does not divide it into sides of at least 2.
    """
    check_workers("torus", n)
    if rows is None:
        rows = max(side for side in range(1, math.isqrt(n) + 1) if n % side == 0)
        if rows == 1 and n > 1:
            raise ValueError(f"a torus needs two sides of at least 2, and {n} workers have none: take a ring, or base_graph")
    elif n > 1 and (rows < 2 or n % rows or n // rows < 2):
        raise ValueError(f"a torus of {n} workers cannot have {rows} rows: both sides must be at least 2, and multiply to {n}")
    grid = np.arange(n).reshape(rows if n > 1 else 1, -1)
    edges = [np.stack([grid, np.roll(grid, -1, axis)], -1).reshape(-1, 2) for axis in (0, 1)]
    return metropolis("torus", n, np.concatenate(edges))


def hypercube(n: int) -> Topology:
    """Each worker and those whose number differs from its own in one bit, weights 1 / (log₂ n + 1).

    Raises:
        ValueError: unless n is a power of two.
    """
    check_power_of_two("hypercube", n)
    workers = np.arange(n)
    return metropolis("hypercube", n, np.stack([np.tile(workers, bits(n)), flipped(n).ravel()], 1))


def star(n: int) -> Topology:
    """Worker 0 and everybody else, weights 1/n. Everybody sends to worker 0 in every round, and it to everybody.

    A round's arrays are ``[n, n − 1]``, for worker 0 hears so many.
    """
    check_workers("star", n)
    return metropolis("star", n, np.stack([np.zeros(n, np.int64), np.arange(n)], 1))


def complete(n: int) -> Topology:
    """Everybody and everybody, weights 1/n: the mean in one round, for n − 1 messages each; arrays are ``[n, n − 1]``."""
    check_workers("complete", n)
    return metropolis("complete", n, np.stack(np.triu_indices(n, 1), 1))


def exponential(n: int) -> Topology:
    """Worker i hears from i + 1, i + 2, i + 4, … (mod n), ⌈log₂ n⌉ peers, weights 1 / (⌈log₂ n⌉ + 1); one way, not symmetric.

    Ying et al., "Exponential Graph is Provably Efficient for Decentralized Deep Training", arXiv 2110.13363.
    """
    check_workers("exponential", n)
    senders = (np.arange(n)[:, None] + 2 ** np.arange(bits(n))) % n
    receivers = np.arange(n).repeat(bits(n))
    return periodic("exponential", n, Links(receivers, senders.ravel(), np.full(senders.size, 1 / (bits(n) + 1))))


def from_edges(n: int, edges: Iterable[Iterable[int]]) -> Topology:
    """Any undirected graph, with Metropolis–Hastings weights.

    Args:
        n: workers.
        edges: pairs of workers, 0 to n − 1; one that is given twice, either way round, counts once. The graph need not be
            connected, but if it is not, there will be no consensus: see :meth:`~disttrain.topology.Topology.is_connected`.

    Raises:
        ValueError: if an edge is not a pair of two different workers.
    """
    check_workers("edges", n)
    pairs = [list(edge) for edge in edges]
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= end < n for end in pair):
            raise ValueError(f"an edge must be a pair of two different workers, 0 to {n - 1}, got {pair}")
    return metropolis("edges", n, np.array(pairs, np.int64).reshape(-1, 2))


def from_networkx(graph: nx.Graph) -> Topology:
    """A networkx graph as a topology, with Metropolis–Hastings weights; the attributes of its edges are not looked at.

    Raises:
        ValueError: if it is directed, if its nodes are not the numbers 0 to n − 1, or if an edge joins a worker to itself.
    """
    n = graph.number_of_nodes()
    if graph.is_directed():
        raise ValueError("a topology's graph must be undirected, got a directed one: take graph.to_undirected()")
    if set(graph.nodes) != set(range(n)):
        raise ValueError(f"a topology's graph must have the nodes 0 to {n - 1}, got {sorted(map(str, graph.nodes))[:5]} …: "
                         "take networkx.convert_node_labels_to_integers(graph)")  # fmt: skip
    return from_edges(n, graph.edges())


def metropolis(name: str, n: int, pairs: Ints) -> Topology:
    """The undirected graph of these pairs ``[m, 2]``; those of a worker with itself are left out, and repeated ones."""
    low, high = pairs.min(1, initial=n), pairs.max(1, initial=0)
    numbers = np.unique((low * n + high)[low != high])  # of rows, unique() is 50 times slower
    pairs = np.stack(np.divmod(numbers, n), 1)
    degrees = np.bincount(pairs.ravel(), minlength=n)
    return periodic(name, n, both_ways(pairs, 1 / (1 + degrees[pairs].max(1, initial=0))))


def bits(n: int) -> int:
    """⌈log₂ n⌉: how many bits number n workers."""
    return (n - 1).bit_length()


def flipped(n: int) -> Ints:
    """Each worker's number with one bit flipped, int64 ``[log₂ n, n]``, bit by bit."""
    return np.arange(n) ^ (1 << np.arange(bits(n)))[:, None]


def check_power_of_two(name: str, n: int) -> None:
    """Raise ValueError unless n is one."""
    check_workers(name, n)
    if n & (n - 1):
        raise ValueError(f"{name} needs a power of two of workers, got {n}: take base_graph, which is exact for every number, "
                         f"or {2 ** (bits(n) - 1)} or {2 ** bits(n)} workers")  # fmt: skip


@topologies.register
class RingConfig(TopologyConfig):
    """Each worker and its two neighbours: the least traffic per link, and the slowest to mix."""

    name: Literal["ring"] = "ring"

    def build(self, size: int, seed: int = 0) -> Topology:
        """For every size."""
        return ring(size)


@topologies.register
class TorusConfig(TopologyConfig):
    """A grid whose borders meet."""

    name: Literal["torus"] = "torus"
    rows: int | None = Field(None, ge=2)
    """The grid's; none: as near to a square as the number of workers allows."""

    def build(self, size: int, seed: int = 0) -> Topology:
        """For sizes that are a product of two sides of at least 2."""
        return torus(size, self.rows)


@topologies.register
class HypercubeConfig(TopologyConfig):
    """Each worker and those whose number differs in one bit, all in every round."""

    name: Literal["hypercube"] = "hypercube"

    def build(self, size: int, seed: int = 0) -> Topology:
        """For powers of two."""
        return hypercube(size)


@topologies.register
class StarConfig(TopologyConfig):
    """Worker 0 and everybody else."""

    name: Literal["star"] = "star"

    def build(self, size: int, seed: int = 0) -> Topology:
        """For every size."""
        return star(size)


@topologies.register
class CompleteConfig(TopologyConfig):
    """Everybody and everybody: what an all-reduce computes, for as many messages as there are peers."""

    name: Literal["complete"] = "complete"

    def build(self, size: int, seed: int = 0) -> Topology:
        """For every size."""
        return complete(size)


@topologies.register
class ExponentialConfig(TopologyConfig):
    """Peers at distances 1, 2, 4, …, all in every round."""

    name: Literal["exponential"] = "exponential"

    def build(self, size: int, seed: int = 0) -> Topology:
        """For every size."""
        return exponential(size)


@topologies.register
class EdgesConfig(TopologyConfig):
    """Any connected graph, with Metropolis–Hastings weights."""

    name: Literal["edges"] = "edges"
    edges: list[list[int]]
    """Pairs of workers, numbered from 0."""

    def build(self, size: int, seed: int = 0) -> Topology:
        """For sizes that the edges connect."""
        topology = from_edges(size, self.edges)
        largest, *others = components(topology.links, size)
        if others:
            raise ValueError(f"these edges leave worker {others[0][0]} without any path to worker {largest[0]}: {size} workers "
                             f"in {1 + len(others)} groups can never agree; join the groups, or take base_graph")  # fmt: skip
        return topology
