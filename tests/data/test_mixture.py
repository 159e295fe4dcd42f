"""A mixture keeps its shares, visits every sample of every part, and is a pure function of the step."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.component import UserError
from disttrain.data import LabelledDataset, make_order, mixture
from disttrain.data.mixture import BLOCK, JoinedDataset, MixedOrder, shares
from disttrain.data.partitions import partitions

weights = st.lists(st.floats(0.01, 1), min_size=1, max_size=4)
ALL = torch.arange(1)


def order(sizes, weights, workers=1, seed=0):
    return MixedOrder(sizes, weights, workers, seed)


@pytest.fixture
def short(monkeypatch):
    """Blocks of ten samples."""
    monkeypatch.setattr(mixture, "BLOCK", 10)


@given(weights)
def test_shares_are_the_weights_to_one_sample(weights):
    counts = shares(weights)
    assert sum(counts) == BLOCK
    assert all(abs(count - weight / sum(weights) * BLOCK) <= 1 for count, weight in zip(counts, weights, strict=True))


def test_a_weight_too_small_to_be_kept_is_refused():
    with pytest.raises(ValueError, match=r"weight 1e-05 of 1.00001 is less than 1 in 10,000"):
        shares([1.0, 1e-5])


def test_every_block_has_exact_shares_whatever_the_sizes(short):
    line = torch.cat([order([3, 100], [0.7, 0.3]).batch(step, 5, ALL)[0] for step in range(40)])
    for block in line.view(-1, 10):
        assert (block < 3).sum() == 7


def test_each_part_has_its_own_shuffled_epochs(short):
    line = torch.cat([order([6, 14], [0.6, 0.4]).batch(step, 10, ALL)[0] for step in range(21)])
    for part, size in ((line[line < 6], 6), (line[line >= 6], 14)):
        epochs = part.view(-1, size).tolist()
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert epochs[0] != epochs[1] != sorted(epochs[1])


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=3), st.integers(1, 25), st.lists(st.integers(0, 60), min_size=1, max_size=8)
)
def test_a_batch_does_not_depend_on_those_asked_for_before(sizes, batch_size, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK", 30)
        weights = [1.0, 2.0, 0.5][: len(sizes)]
        used = order(sizes, weights)
        for step in steps:
            assert torch.equal(used.batch(step, batch_size, ALL), order(sizes, weights).batch(step, batch_size, ALL))


def test_workers_together_see_what_one_alone_sees(short):
    pair = order([5, 9], [1, 1], workers=2).batch(3, 8, torch.arange(2))
    assert torch.equal(pair.flatten(), order([5, 9], [1, 1]).batch(3, 8, ALL)[0])
    assert torch.equal(pair[1:], order([5, 9], [1, 1], workers=2).batch(3, 8, torch.tensor([1])))


def test_seeds_differ(short):
    assert not torch.equal(order([50, 50], [1, 1]).batch(0, 40, ALL), order([50, 50], [1, 1], seed=1).batch(0, 40, ALL))


def labelled(*labels):
    return LabelledDataset(torch.tensor(labels).float()[:, None], torch.tensor(labels))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=20))
def test_joined_samples_come_in_the_order_asked_for(indices):
    joined = JoinedDataset((labelled(0, 1, 2), labelled(3), labelled(4, 5, 6, 7, 8)))
    assert len(joined) == 9
    assert joined.batch(torch.tensor(indices))[1].tolist() == indices
    assert joined.batch(torch.tensor(indices))[0][:, 0].tolist() == indices
    with pytest.raises(IndexError):
        joined.batch(torch.tensor([9]))


def test_weights_make_the_order_and_refuse_a_partition():
    joined = JoinedDataset((labelled(0, 1), labelled(*range(20))), weights=(0.5, 0.5))
    drawn = make_order(partitions["none"](), joined, 1, 0).batch(0, BLOCK, ALL)[0]
    assert Counter((drawn < 2).tolist()) == {True: BLOCK // 2, False: BLOCK // 2}
    with pytest.raises(UserError, match=r"data.weights mix what partition.name=iid would divide"):
        make_order(partitions["iid"](), joined, 2, 0)
