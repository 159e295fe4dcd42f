"""Base-(k+1) graphs reach the exact mean for every number of workers, in as few rounds as the paper's."""

import math
from functools import reduce

import numpy as np
import pytest

from disttrain.topology import base_graph, one_peer_hypercube
from disttrain.topology.base_graphs import fewest_factors, smooth_part

PERIODS = {5: 5, 6: 4, 7: 5, 12: 5, 24: 6, 25: 9, 31: 9, 33: 11, 48: 7, 63: 11, 64: 6}


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("n", range(1, 65))
def test_exact_after_a_period_with_at_most_k_peers(n, k):
    topology = base_graph(n, k)
    matrices = [topology.matrix(t) for t in range(topology.period)]
    product = reduce(lambda P, W: W @ P, matrices)
    assert np.abs(product - 1 / n).max() <= 1e-10
    assert all(np.array_equal(W != 0, W.T != 0) and (W != 0).sum(1).max() <= k + 1 for W in matrices)
    assert topology.symmetric
    assert topology.is_finite_time()
    assert topology.period <= max(1, 2 * math.log(n, k + 1) + 2)


@pytest.mark.parametrize(("n", "period"), PERIODS.items())
def test_periods_are_the_papers(n, period):
    assert base_graph(n).period == base_graph(n).exact_after == period


def test_five_workers_meet_as_in_the_paper():
    topology = base_graph(5)
    pairs = [{(min(i, j), max(i, j)) for i, j, _ in zip(*topology.round(t).links, strict=True)} for t in range(5)]
    assert pairs == [{(0, 1), (2, 3)}, {(0, 2), (1, 3)}, {(0, 1), (3, 4)}, {(0, 1), (2, 3)}, {(0, 2), (1, 3)}]
    assert topology.matrix(2)[4].tolist() == pytest.approx([0, 0, 0, 0.8, 0.2])


@pytest.mark.parametrize("n", [2, 4, 8, 64])
def test_for_powers_of_two_it_is_the_one_peer_hypercube(n):
    mine, theirs = base_graph(n), one_peer_hypercube(n)
    assert mine.period == theirs.period
    assert all(np.array_equal(mine.matrix(t), theirs.matrix(t)) for t in range(mine.period))


@pytest.mark.parametrize("n", [2, 5, 12])
def test_with_a_peer_for_everybody_it_is_complete(n):
    assert base_graph(n, k=n - 1).exact_after == base_graph(n, k=n + 3).exact_after == 1


@pytest.mark.parametrize("k", [0, -1])
def test_a_round_without_peers_is_refused(k):
    with pytest.raises(ValueError, match=f"k of at least 1.*got {k}"):
        base_graph(8, k)


def test_numbers_are_cut_into_few_factors():
    assert [fewest_factors(n, 4) for n in (1, 2, 8, 9, 12, 36, 5)] == [(), (2,), (4, 2), (3, 3), (4, 3), (4, 3, 3), None]
    assert fewest_factors(36, 6) == (6, 6)
    assert [smooth_part(n, 3) for n in (1, 5, 6, 20, 63)] == [1, 1, 6, 4, 9]
