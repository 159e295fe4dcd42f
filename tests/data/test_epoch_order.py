"""The order of the data: each sequence once per epoch, shared out exactly, and a pure function of the step."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.data.order import EpochOrder, microbatches, permutation, share

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**63 - 1)


@given(sizes, sizes, seeds, st.booleans())
def test_each_sequence_comes_once_per_epoch(num_sequences, batch_size, seed, shuffle):
    order = EpochOrder(num_sequences, seed, shuffle)
    steps = 3 * num_sequences  # so that 3 · batch_size whole epochs have passed
    line = torch.cat([order.batch_indices(step, batch_size) for step in range(steps)])
    for epoch in line.view(-1, num_sequences):
        assert epoch.sort().values.tolist() == list(range(num_sequences))


@given(sizes, sizes, seeds, st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_a_batch_does_not_depend_on_those_asked_for_before(num_sequences, batch_size, seed, steps):
    used = EpochOrder(num_sequences, seed)
    for step in steps:
        fresh = EpochOrder(num_sequences, seed)
        assert torch.equal(used.batch_indices(step, batch_size), fresh.batch_indices(step, batch_size))


@given(sizes, st.integers(1, 6), st.integers(1, 5), seeds, st.integers(0, 50))
def test_shares_join_to_the_global_batch(num_sequences, world, each, seed, step):
    batch = EpochOrder(num_sequences, seed).batch_indices(step, world * each)
    shares = [share(batch, worker, world) for worker in range(world)]
    assert torch.equal(torch.cat(shares), batch)
    assert {len(part) for part in shares} == {each}


@given(sizes, sizes, seeds, st.integers(0, 50))
def test_two_workers_together_see_what_one_alone_sees(num_sequences, half, seed, step):
    alone = share(EpochOrder(num_sequences, seed).batch_indices(step, 2 * half), 0, 1)
    pair = [share(EpochOrder(num_sequences, seed).batch_indices(step, 2 * half), worker, 2) for worker in range(2)]
    assert Counter(alone.tolist()) == Counter(torch.cat(pair).tolist())


@given(st.integers(2, 40), seeds)
def test_shares_of_a_batch_within_an_epoch_are_disjoint(half, seed):
    batch = EpochOrder(2 * half, seed).batch_indices(0, 2 * half)
    assert not set(share(batch, 0, 2).tolist()) & set(share(batch, 1, 2).tolist())


@given(sizes, st.integers(1, 6), st.integers(1, 6))
def test_microbatches_join_to_the_batch(num_sequences, count, each):
    batch = EpochOrder(num_sequences, seed=0).batch_indices(1, count * each)
    parts = microbatches(batch, count)
    assert len(parts) == count
    assert torch.equal(torch.cat(parts), batch)


def test_a_batch_may_hold_several_epochs():
    batch = EpochOrder(3, seed=0).batch_indices(0, 8)
    assert Counter(batch.tolist()).most_common()[-1][1] == 2
    assert batch.shape == (8,)
    assert batch.dtype == torch.int64


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [permutation(50, seed, epoch).tolist() for seed in range(5) for epoch in range(5)]
    assert len({tuple(order) for order in orders}) == 25


def test_the_order_never_changes():
    assert permutation(8, seed=1, epoch=2).tolist() == [4, 3, 6, 7, 1, 2, 5, 0]


def test_a_sequence_is_as_likely_at_any_place():
    places = torch.stack([permutation(6, seed, 0) for seed in range(3000)])
    counts = torch.stack([(places == sequence).sum(dim=0) for sequence in range(6)])
    assert (counts - 500).abs().max() < 120  # six standard deviations


def test_without_shuffling_sequences_come_by_index():
    order = EpochOrder(5, seed=3, shuffle=False)
    assert [order.batch_indices(step, 3).tolist() for step in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


def test_writing_to_a_batch_leaves_later_ones_alone():
    order = EpochOrder(4, seed=0)
    expected = order.batch_indices(0, 4).clone()
    order.batch_indices(0, 4).zero_()
    assert torch.equal(order.batch_indices(0, 4), expected)


def test_a_far_step_costs_no_more_than_the_first():
    assert EpochOrder(7, seed=0).batch_indices(10**15, 64).shape == (64,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EpochOrder(0, seed=0), "num_sequences=0"),
        (lambda: EpochOrder(4, seed=0).batch_indices(-1, 2), "step=-1"),
        (lambda: EpochOrder(4, seed=0).batch_indices(0, 0), "batch_size=0"),
        (lambda: share(torch.arange(10), 0, 4), r"batch_size=10 cannot be shared equally by 4 workers"),
        (lambda: share(torch.arange(8), 4, 4), r"worker must be in \[0, 4\), got 4"),
        (lambda: microbatches(torch.arange(10), 4), r"batch of 10 .*gradient_accumulation=4"),
        (lambda: microbatches(torch.arange(10), 0), r"gradient_accumulation=0"),
    ],
)
def test_impossible_requests_are_refused_with_their_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()
