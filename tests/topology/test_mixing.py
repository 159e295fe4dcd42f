"""Graphs of any shape mix, and what is left of a round without the dead still keeps the mean of the living."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain import topology as kinds
from disttrain.topology.mixing import Mixing
from tests.topology.kinds import KINDS, ONE_WAY, topologies


@st.composite
def graphs(draw):
    """A random graph of 1 to 24 workers, connected or not, and its number of workers and its edges."""
    n, seed = draw(st.integers(1, 24)), draw(st.integers(0, 2**32 - 1))
    graph = nx.gnp_random_graph(n, draw(st.floats(0, 1)), seed=seed)
    return graph, n, list(graph.edges())


@given(graphs())
def test_metropolis_weights_are_those_of_the_degrees(case):
    graph, n, edges = case
    W = kinds.from_edges(n, edges).matrix()
    expected = np.zeros((n, n))
    for i, j in edges:
        expected[i, j] = expected[j, i] = 1 / (1 + max(graph.degree[i], graph.degree[j]))
    off_diagonal = W - np.diag(np.diag(W))
    assert np.array_equal(off_diagonal, expected)
    assert np.abs(W.sum(0) - 1).max() <= 1e-12
    assert (np.diag(W) > 0).all()


@given(graphs())
def test_a_graph_has_a_gap_if_and_only_if_it_is_connected(case):
    graph, n, edges = case
    topology = kinds.from_edges(n, edges)
    assert topology.is_connected() == nx.is_connected(graph)
    assert (topology.spectral_gap() > 1e-10) == nx.is_connected(graph)


@given(graphs(), st.randoms(use_true_random=False))
def test_relabelled_workers_mix_the_same(case, random):
    _, n, edges = case
    to = random.sample(range(n), n)
    relabelled = kinds.from_edges(n, [(to[j], to[i]) for i, j in random.sample(edges, len(edges))])
    assert np.abs(relabelled.matrix()[np.ix_(to, to)] - kinds.from_edges(n, edges).matrix()).max() <= 1e-15


@given(graphs())
def test_a_networkx_graph_is_its_edges(case):
    graph, n, edges = case
    assert np.array_equal(kinds.from_networkx(graph).matrix(), kinds.from_edges(n, edges).matrix())


def test_workers_are_a_networkx_graphs_labels_not_its_order():
    graph = nx.Graph([(2, 1), (1, 0)])
    assert list(graph.nodes) == [2, 1, 0]
    assert kinds.from_networkx(graph).matrix()[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nx.DiGraph([(0, 1)]), "undirected"),
        (nx.Graph([("a", "b")]), r"nodes 0 to 1, got \['a', 'b'\].*convert_node_labels_to_integers"),
        (nx.Graph([(1, 2)]), "nodes 0 to 1"),
        (nx.Graph([(0, 1), (1, 1)]), "two different workers"),
    ],
)
def test_graphs_that_are_no_topology_are_refused(graph, message):
    with pytest.raises(ValueError, match=message):
        kinds.from_networkx(graph)


@pytest.mark.parametrize("edge", [(0, 0), (0, 3), (-1, 0), (0, 1, 2), (0,)])
def test_edges_that_are_none_are_refused_by_name(edge):
    with pytest.raises(ValueError, match=rf"two different workers, 0 to 2, got \[{', '.join(map(str, edge))}\]"):
        kinds.from_edges(3, [(0, 1), edge])


def test_an_edge_given_twice_counts_once():
    assert np.array_equal(kinds.from_edges(3, [(0, 1), (1, 0), (1, 2)]).matrix(), kinds.from_edges(3, [(1, 2), (0, 1)]).matrix())


@given(topologies(set(KINDS) - ONE_WAY), st.integers(0, 200), st.data())
def test_without_the_dead_a_round_is_doubly_stochastic_on_the_living(topology, t, data):
    n = topology.size
    alive = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any)))
    whole, rest = topology.round(t), kinds.restrict(topology.round(t), torch.from_numpy(alive))
    W, left = whole.matrix(), rest.matrix()
    living = left[np.ix_(alive, alive)]
    assert left.min() >= 0
    assert rest.is_symmetric
    assert np.abs(living.sum(0) - 1).max() <= 1e-12
    assert np.abs(living.sum(1) - 1).max() <= 1e-12
    assert np.array_equal(left[~alive], np.eye(n)[~alive])
    assert np.array_equal(left[:, ~alive], np.eye(n)[:, ~alive])
    between_the_living = np.outer(alive, alive) & ~np.eye(n, dtype=bool)
    assert np.array_equal(left[between_the_living], W[between_the_living])
    assert rest.senders.shape == whole.senders.shape


@pytest.mark.parametrize("kind", sorted(ONE_WAY))
def test_one_way_rounds_do_not_go_on_without_a_worker(kind):
    alive = torch.tensor([True, True, False, True, True])
    with pytest.raises(ValueError, match="take a symmetric topology"):
        kinds.restrict(KINDS[kind][0](5).round(0), alive)


@pytest.mark.parametrize("alive", [torch.ones(4, dtype=torch.bool), torch.ones(5)])
def test_alive_must_be_of_all_workers(alive):
    with pytest.raises(ValueError, match=r"alive must be bool \[5\]"):
        kinds.restrict(kinds.ring(5).round(0), alive)


def test_a_round_needs_a_weight_for_each_sender():
    with pytest.raises(ValueError, match=r"\[3, 1\], got \[3, 2\]"):
        Mixing(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 2))


def test_a_round_that_is_symmetric_but_for_its_weights_is_not():
    senders = torch.tensor([[1], [0]])
    assert Mixing(senders, torch.tensor([[0.5], [0.5]])).is_symmetric
    assert not Mixing(senders, torch.tensor([[0.5], [0.25]])).is_symmetric
    assert not Mixing(torch.tensor([[1], [2], [0]]), torch.full((3, 1), 0.5)).is_symmetric
