"""Topologies whose rounds keep the sum and not the rows: they say so, and weights that travel along make up for it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain import random
from disttrain import topology as kinds
from disttrain.topology.random_push import drawn
from tests.topology.kinds import KINDS, topologies

pushes = st.builds(kinds.random_push, st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**20))


@given(pushes, st.integers(0, 200))
def test_columns_sum_to_1_and_everybody_pushes_to_k_others_in_equal_shares(topology, t):
    P, k = topology.matrix(t), topology.k
    assert np.abs(P.sum(0) - 1).max() <= 1e-15
    assert P[P != 0] == pytest.approx(1 / (k + 1))
    assert ((P != 0).sum(0) == k + 1).all()
    assert (np.diag(P) > 0).all()
    assert topology.fan_out == k == min(k, topology.size - 1)
    assert topology.round(t).degree <= topology.degree


@given(pushes)
def test_it_is_doubly_stochastic_only_if_all_push_to_all(topology):
    assert topology.doubly_stochastic == (topology.k == topology.size - 1)
    rounds = [topology.round(t).is_doubly_stochastic for t in range(60 if topology.size > 3 else 0)]
    assert topology.doubly_stochastic or not rounds or not all(rounds)


@given(topologies())
def test_all_other_kinds_are_doubly_stochastic(topology):
    assert topology.doubly_stochastic
    assert topology.fan_out == topology.degree


@pytest.mark.parametrize("kind", [*KINDS, "random_push"])
def test_some_keep_the_mean_and_some_are_refused_with_a_way_out(kind):
    topology = KINDS[kind][0](8) if kind in KINDS and kind != "torus" else kinds.random_push(8)
    if topology.doubly_stochastic:
        kinds.base.check_keeps_mean(topology)
    else:
        with pytest.raises(ValueError, match=r"under random_push, 8 workers lose the mean.*take random_matching.*gradient_push"):
            kinds.base.check_keeps_mean(topology)


@settings(max_examples=25)
@given(st.integers(2, 30), st.integers(1, 3), st.integers(0, 2**20))
def test_numerators_over_weights_come_to_the_mean_and_weights_stay_positive(n, k, seed):
    topology, x, w = kinds.random_push(n, k, seed), np.random.default_rng(seed).standard_normal(n), np.ones(n)
    mean = x.mean()
    for t in range(120):
        P = topology.matrix(t)
        x, w = P @ x, P @ w
        assert (w > 0).all()
    assert np.abs(x / w - mean).max() < 1e-6
    assert abs(w.sum() - n) < 1e-12 * n
    assert abs(x.sum() - n * mean) < 1e-12 * n


@pytest.mark.parametrize(("n", "k"), [(2, 1), (3, 1), (6, 1), (6, 2), (6, 5), (20, 3)])
def test_a_round_leaves_what_the_gap_says(n, k):
    topology, num_rounds = kinds.random_push(n, k, seed=1), 1500
    d = np.random.default_rng(0).standard_normal(n)
    d -= d.mean()
    left = np.array([np.square(topology.matrix(t) @ d).sum() for t in range(num_rounds)]) / np.square(d).sum()
    expected = (1 - topology.spectral_gap()) ** 2
    assert abs(left.mean() - expected) <= 4 * left.std() / np.sqrt(num_rounds) + 1e-12
    assert topology.exact_after == (1 if k == n - 1 else None)


@pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 5), (2, 5), (4, 5), (5, 5)])
def test_draws_are_different_and_all_sets_are_equally_likely(k, m):
    num = 6000
    sets = drawn(random.key(0, random.Stream.TOPOLOGY, 0, torch.arange(num)), k, m).sort(1).values
    assert (sets[:, 1:] > sets[:, :-1]).all()
    assert sets.min() >= 0
    assert sets.max() < m
    counts = np.unique(sets.numpy(), axis=0, return_counts=True)[1]
    expected = num / len(counts)
    assert len(counts) == math.comb(m, k)
    assert np.abs(counts - expected).max() <= 5 * np.sqrt(expected)


def test_rounds_differ_by_round_and_by_seed_and_never_change():
    first = kinds.random_push(16, seed=0)
    assert not np.array_equal(first.matrix(0), first.matrix(1))
    assert not np.array_equal(first.matrix(0), kinds.random_push(16, seed=1).matrix(0))
    receivers, senders, _ = kinds.random_push(5, 2, seed=7).round(3).links
    assert receivers.tolist() == [0, 1, 1, 2, 2, 3, 3, 3, 4, 4]
    assert senders.tolist() == [3, 2, 3, 0, 4, 0, 1, 4, 1, 2]


def test_one_worker_is_alone_and_two_have_their_mean_after_one_round():
    assert kinds.random_push(1).round(5).senders.shape == (1, 0)
    assert (kinds.random_push(1).spectral_gap(), kinds.random_push(1).exact_after) == (1, 0)
    assert kinds.random_push(2).matrix().tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("k", [0, -1])
def test_a_worker_that_pushes_to_nobody_is_refused(k):
    with pytest.raises(ValueError, match=f"random_push needs a k of at least 1, got {k}"):
        kinds.random_push(8, k)


def test_it_can_be_drawn(tmp_path):
    kinds.plot_topology(kinds.random_push(8, 2), tmp_path / "picture.png", rounds=2)
    assert (tmp_path / "picture.png").stat().st_size > 1000
