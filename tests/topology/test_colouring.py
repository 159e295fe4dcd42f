"""A colouring splits a graph into matchings, into as few as are known to be enough."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain import topology as kinds
from tests.topology.kinds import KINDS, ONE_WAY, topologies

densities = st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0])


def colours_of(topology):
    return kinds.matchings(topology).period


def assert_proper(matchings, edges):
    for matching in matchings:
        assert len(np.unique(matching)) == matching.size
    pairs = [tuple(pair) for matching in matchings for pair in matching.tolist()]
    assert sorted(pairs) == sorted((min(edge), max(edge)) for edge in edges)


@given(st.integers(1, 24), densities, st.integers(0, 2**32 - 1))
def test_any_graph_is_split_into_matchings(n, density, seed):
    graph = nx.gnp_random_graph(n, density, seed=seed)
    matchings = kinds.edge_colouring(n, np.array(list(graph.edges()), np.int64).reshape(-1, 2))
    assert_proper(matchings, graph.edges())
    degree = max(dict(graph.degree).values())
    assert degree <= len(matchings) <= max(0, 2 * degree - 1)


@given(st.integers(1, 12), st.integers(1, 12), densities, st.integers(0, 2**32 - 1))
def test_a_bipartite_graph_needs_no_more_than_its_degree(n, m, density, seed):
    graph = nx.bipartite.random_graph(n, m, density, seed=seed)
    matchings = kinds.edge_colouring(n + m, np.array(list(graph.edges()), np.int64).reshape(-1, 2))
    assert_proper(matchings, graph.edges())
    assert len(matchings) == max(dict(graph.degree).values())


@pytest.mark.parametrize("n", range(3, 33))
def test_rings_need_two_or_three_and_complete_graphs_as_many_as_a_tournament(n):
    assert colours_of(kinds.ring(n)) == 2 + n % 2
    assert colours_of(kinds.complete(n)) == n - 1 + n % 2


@pytest.mark.parametrize("power", range(1, 7))
def test_hypercubes_need_their_dimension(power):
    assert colours_of(kinds.hypercube(2**power)) == power


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (4, 6), (8, 8), (6, 10)])
def test_even_tori_need_four(rows, columns):
    assert colours_of(kinds.torus(rows * columns, rows)) == 4


@given(topologies(set(KINDS) - ONE_WAY - {"random_matching"}, most=24))
def test_matchings_are_a_topology_of_the_same_edges(topology):
    split = kinds.matchings(topology)
    assert split.degree == (topology.size > 1)
    assert split.symmetric
    assert split.is_connected()
    edges = {tuple(edge) for edge in np.stack(topology.links[:2], 1).tolist()}
    assert {tuple(edge) for edge in np.stack(split.links[:2], 1).tolist()} == edges


@pytest.mark.parametrize("topology", [kinds.exponential(6), kinds.one_peer_exponential(5), kinds.random_matching(4)])
def test_what_is_directed_or_drawn_cannot_be_coloured(topology):
    with pytest.raises(ValueError, match=f"{topology.name} is not one: take one_peer_hypercube"):
        kinds.matchings(topology)
