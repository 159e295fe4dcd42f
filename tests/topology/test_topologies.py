"""Every round of every topology keeps the mean and brings the workers together, as fast as is known for its kind."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain import topology as kinds
from disttrain.worlds import StackedWorld
from tests.topology.kinds import KINDS, ONE_WAY, is_power_of_two, topologies

rounds = st.integers(0, 200)
ALL = range(1, 65)


def rows(topology, seed=0):
    return np.random.default_rng(seed).standard_normal((topology.size, 3))


def distance(x):
    return np.linalg.norm(x - x.mean(0))


@given(topologies(), rounds)
def test_rounds_are_doubly_stochastic(topology, t):
    W = topology.matrix(t)
    assert W.shape == (topology.size, topology.size)
    assert W.dtype == np.float64
    assert W.min() >= 0
    assert np.abs(W.sum(0) - 1).max() <= 1e-12
    assert np.abs(W.sum(1) - 1).max() <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_of_workers_is_taken_or_refused_with_the_reason_and_a_way_out(kind):
    make, accepts = KINDS[kind]
    for n in ALL:
        if accepts(n):
            assert make(n).size == n
        else:
            with pytest.raises(ValueError, match=rf"needs .*{n}.*take .*base_graph"):
                make(n)
    with pytest.raises(ValueError, match="at least one worker, got 0"):
        make(0)


@given(topologies(), rounds)
def test_symmetric_to_the_last_bit_where_it_says_so(topology, t):
    W = topology.matrix(t)
    off_diagonal = W - np.diag(np.diag(W))
    if topology.symmetric:
        assert np.array_equal(off_diagonal, off_diagonal.T)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_exponential_graphs_are_one_way(kind):
    make, accepts = KINDS[kind]
    assert all(make(n).symmetric != (kind in ONE_WAY) for n in range(5, 65) if accepts(n))


@given(topologies({"one_peer_hypercube", "random_matching", "base_graph"}), rounds)
def test_in_a_matching_a_partners_partner_is_oneself(topology, t):
    senders = topology.round(t).senders
    assert senders.shape[1] == (topology.size > 1)
    for partner in senders.T:
        assert torch.equal(partner[partner], torch.arange(topology.size))


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 64), rounds)
def test_every_worker_makes_the_same_rounds(kind, n, t):
    make, accepts = KINDS[kind]
    if accepts(n):
        mine, others = make(n).round(t), make(n).round(t)
        assert torch.equal(mine.senders, others.senders)
        assert torch.equal(mine.weights, others.weights)


@given(topologies(), rounds)
def test_rounds_come_again_after_a_period(topology, t):
    if topology.period is not None:
        assert np.array_equal(topology.matrix(t), topology.matrix(t + topology.period))


@given(topologies(), rounds)
def test_its_degree_is_the_most_that_a_worker_hears(topology, t):
    W = topology.matrix(t)
    heard = ((W != 0) & ~np.eye(topology.size, dtype=bool)).sum(1).max()
    every_round = range(topology.period or 1)
    assert heard <= topology.degree == max(topology.round(each).degree for each in every_round)


@given(topologies(), rounds)
def test_flows_are_the_matrix_product(topology, t):
    world, mixing, x = StackedWorld(topology.size), topology.round(t), torch.from_numpy(rows(topology))
    heard = world.exchange(x, mixing)
    mixed = x + (mixing.weights[..., None] * (heard - x[:, None])).sum(1)
    assert np.abs(mixed.numpy() - topology.matrix(t) @ x.numpy()).max() <= 1e-12


@given(topologies(set(KINDS) - ONE_WAY), rounds)
def test_both_ends_of_a_link_add_opposite_amounts_to_the_last_bit(topology, t):
    receivers, senders, weights = topology.round(t).links
    x = rows(topology)
    flows = {(i, j): w * (x[j] - x[i]) for i, j, w in zip(receivers, senders, weights, strict=True)}
    assert all(np.array_equal(flow, -flows[j, i]) for (i, j), flow in flows.items())


@given(topologies(), rounds)
def test_the_mean_stays_and_the_distance_shrinks_by_the_gap(topology, t):
    x, W = rows(topology), topology.matrix(t)
    mixed, gap = W @ x, kinds.spectral.spectral_gap(W)
    assert np.abs(mixed.mean(0) - x.mean(0)).max() <= 1e-12
    assert distance(mixed) <= (1 - gap) * distance(x) + 1e-12
    assert (mixed.min(0) >= x.min(0) - 1e-12).all()
    assert (mixed.max(0) <= x.max(0) + 1e-12).all()


@given(topologies(most=32))
def test_a_periods_gap_is_between_0_and_1_and_positive_since_all_are_connected(topology):
    assert topology.is_connected()
    assert 0 < topology.spectral_gap() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_worker_is_alone_and_of_one_mind(kind):
    topology = KINDS[kind][0](1)
    assert topology.matrix(5).tolist() == [[1.0]]
    assert topology.round(5).senders.shape == (1, 0)
    assert (topology.spectral_gap(), topology.exact_after, topology.degree) == (1, 0, 0)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"edges"}))
def test_two_workers_have_their_mean_after_one_round(kind):
    make, accepts = KINDS[kind]
    if accepts(2):
        topology = make(2)
        assert topology.matrix().tolist() == [[0.5, 0.5], [0.5, 0.5]]
        assert topology.exact_after == 1


@pytest.mark.parametrize(
    ("topology", "gap"),
    [(kinds.ring(n), 2 / 3 * (1 - math.cos(2 * math.pi / n))) for n in range(3, 65)]
    + [(kinds.torus(n), 2 / 5 * (1 - math.cos(2 * math.pi / m))) for n, m in [(16, 4), (20, 5), (32, 8), (64, 8), (128, 16)]]
    + [(kinds.hypercube(2**p), 2 / (p + 1)) for p in range(1, 7)]
    + [(kinds.exponential(n), 2 / (math.ceil(math.log2(n)) + 1)) for n in range(2, 65, 2)]
    + [(kinds.star(n), 1 / n) for n in range(3, 65)]
    + [(kinds.complete(n), 1) for n in ALL],
    ids=lambda value: f"{value.name}-{value.size}" if isinstance(value, kinds.Topology) else "",
)
def test_spectral_gaps_are_the_known_ones(topology, gap):
    assert topology.spectral_gap() == pytest.approx(gap, abs=1e-10)


@pytest.mark.parametrize(
    ("topology", "gap"),
    [
        (kinds.ring(8), 0.19526),
        (kinds.ring(64), 0.00321),
        (kinds.torus(128), 0.03045),
        (kinds.torus(32), 0.11716),
        (kinds.exponential(5), 0.750),
        (kinds.exponential(33), 0.3922),
    ],
)
def test_spectral_gaps_are_those_that_were_measured_elsewhere(topology, gap):
    assert topology.spectral_gap() == pytest.approx(gap, abs=5e-6 if gap < 0.2 else 5e-5)


@pytest.mark.parametrize("n", ALL)
def test_one_peer_exponential_is_exact_for_powers_of_two_and_for_no_other(n):
    topology = kinds.one_peer_exponential(n)
    assert topology.period == max(1, math.ceil(math.log2(n)))
    assert topology.is_finite_time() == is_power_of_two(n)
    if is_power_of_two(n):
        assert topology.exact_after == math.log2(n)


@pytest.mark.parametrize("n", [6, 12, 24])
def test_what_one_peer_exponential_leaves_elsewhere(n):
    assert 1 - kinds.one_peer_exponential(n).spectral_gap() == pytest.approx(0.21, abs=0.01)


@pytest.mark.parametrize("n", [2**p for p in range(1, 7)])
def test_one_peer_hypercube_is_exact_after_log_n(n):
    topology = kinds.one_peer_hypercube(n)
    assert topology.period == topology.exact_after == math.log2(n)


@pytest.mark.parametrize("topology", [kinds.ring(5), kinds.torus(9), kinds.hypercube(4), kinds.star(3), kinds.exponential(6)])
def test_static_graphs_are_never_exact(topology):
    assert topology.exact_after is None
    assert not topology.is_finite_time()


def test_the_complete_graph_is_an_all_reduce():
    assert kinds.complete(7).exact_after == 1
    assert np.abs(kinds.complete(7).matrix() - 1 / 7).max() <= 1e-15


@pytest.mark.parametrize("n", [5, 8, 32])
def test_random_matchings_contract_as_expected(n):
    topology, num_rounds = kinds.random_matching(n, seed=1), 2000
    x = np.random.default_rng(0).standard_normal(n)
    left = np.array([distance(topology.matrix(t) @ x) ** 2 for t in range(num_rounds)]) / distance(x) ** 2
    expected = (n - 2) / (2 * (n - 1)) if n % 2 == 0 else 1 / 2
    assert (1 - topology.spectral_gap()) ** 2 == pytest.approx(expected, abs=1e-12)
    assert abs(left.mean() - expected) <= 3 * left.std() / math.sqrt(num_rounds)


def test_random_matchings_pair_everybody_with_everybody_equally_often():
    topology, num_rounds = kinds.random_matching(6), 3000
    met = sum(topology.matrix(t) for t in range(num_rounds)) * 2
    times = met[np.triu_indices(6, 1)]
    deviation = math.sqrt(num_rounds * 1 / 5 * 4 / 5)
    assert np.abs(times - num_rounds / 5).max() <= 4 * deviation


def test_random_matchings_differ_by_round_and_by_seed():
    first = kinds.random_matching(16, seed=0)
    assert not np.array_equal(first.matrix(0), first.matrix(1))
    assert not np.array_equal(first.matrix(0), kinds.random_matching(16, seed=1).matrix(0))


def test_random_matchings_never_change():
    assert kinds.random_matching(8, seed=7).round(3).senders.flatten().tolist() == [1, 0, 5, 6, 7, 2, 3, 4]


def test_a_torus_has_the_rows_that_were_asked_for():
    assert kinds.torus(12, rows=2).degree == 3
    assert set(kinds.torus(12, rows=3).round(0).senders[5].tolist()) == {1, 4, 6, 9}
    for rows_ in (1, 5, 12):
        with pytest.raises(ValueError, match=f"12 workers cannot have {rows_} rows"):
            kinds.torus(12, rows=rows_)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"star", "complete"}))
def test_thousands_of_workers_cost_a_few_numbers_each(kind):
    tracemalloc.start()
    topology = KINDS[kind][0](4096)
    for t in range(3):
        assert topology.round(t).senders.shape == topology.round(t).weights.shape
        assert topology.round(t).senders.shape[1] <= 12
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4096**2 * 8 / 8  # an eighth of one dense matrix
