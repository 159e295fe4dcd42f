"""Edge colouring: a graph's edges in matchings, so that each worker talks to one peer at a time.

Two edges that share a worker get different colours. A graph of degree d needs d colours or d + 1 (Vizing); found here are

- d for a bipartite graph (even rings and tori, hypercubes, trees, stars), by König's alternating paths;
- n − 1 for a complete graph of even n, and n of odd n, by the circle method of tournaments;
- 3 for an odd ring, and at most 2d − 1 for any graph.
"""

from __future__ import annotations

from itertools import count

import numpy as np

from disttrain.topology.base import Topology, periodic
from disttrain.topology.mixing import Ints, both_ways

Colours = dict[int, int]
"""One worker's: the peer at the other end of its edge of a colour."""


def matchings(topology: Topology) -> Topology:
    """A symmetric topology's edges, one matching in each round, in which pairs take their mean.

    Raises:
        ValueError: if the topology is not symmetric, or draws its rounds.
    """
    if not topology.symmetric or topology.period is None:
        raise ValueError(f"only the edges of a fixed, symmetric topology can be coloured, and {topology.name} is not one: take "
                         "one_peer_hypercube, random_matching or base_graph, whose rounds are matchings already")  # fmt: skip
    links = topology.links
    pairs = np.unique(np.sort(np.stack([links.receivers, links.senders], 1)), axis=0)
    coloured = edge_colouring(topology.size, pairs)
    return periodic(f"matchings of {topology.name}", topology.size, *(both_ways(each, 0.5) for each in coloured))


def edge_colouring(n: int, edges: Ints) -> list[Ints]:
    """The edges in matchings.

    Args:
        n: workers.
        edges: int64 ``[m, 2]``, undirected, each once.

    Returns:
        For each colour its edges, int64 ``[m_colour, 2]``, smaller number first, in ascending order.
    """
    pairs = sorted((min(edge), max(edge)) for edge in edges.tolist())
    is_complete = len(pairs) == n * (n - 1) // 2
    colours = [_circle_colour(n, i, j) for i, j in pairs] if is_complete else _by_alternating_paths(n, pairs)
    by_colour: dict[int, list[tuple[int, int]]] = {colour: [] for colour in sorted(set(colours))}
    for pair, colour in zip(pairs, colours, strict=True):
        by_colour[colour].append(pair)
    return [np.array(each, np.int64) for each in by_colour.values()]


def _circle_colour(n: int, i: int, j: int) -> int:
    """When i < j meet in a tournament: all but one sit in a circle that turns; of an even n, the last one keeps its seat."""
    seats = n - 1 + n % 2
    return (2 * i if j == seats else i + j) % seats


def _by_alternating_paths(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Edge by edge: the lowest colour that is free at both ends, made free within the degree where that can be done."""
    degree = int(np.bincount(np.array(pairs, np.int64).ravel(), minlength=n).max()) if pairs else 0
    used: list[Colours] = [{} for _ in range(n)]
    for i, j in pairs:
        colour = _free_at(used[i], used[j])
        if colour >= degree and (freed := _make_free(used, i, j)) is not None:
            colour = freed
        used[i][colour], used[j][colour] = j, i
    colour_of = [{peer: colour for colour, peer in each.items()} for each in used]
    return [colour_of[i][j] for i, j in pairs]


def _free_at(*ends: Colours) -> int:
    return next(colour for colour in count() if not any(colour in used for used in ends))


def _make_free(used: list[Colours], i: int, j: int) -> int | None:
    """Swap two colours along the path from j, so that the one that is free at i is at j too; None if the path ends at i.

    Between the two sides of a bipartite graph it cannot end there: it would arrive at i by the colour that is free there.
    """
    at_i, at_j = _free_at(used[i]), _free_at(used[j])
    path = [j]
    while (following := used[path[-1]].get((at_i, at_j)[len(path) % 2 == 0])) is not None:
        path.append(following)
    if path[-1] == i:
        return None
    swap = {at_i: at_j, at_j: at_i}
    for worker in path:
        used[worker].update({swap[colour]: used[worker].pop(colour) for colour in (at_i, at_j) if colour in used[worker]})
    return at_i
