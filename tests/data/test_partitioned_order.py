"""The order of divided data: each worker's line is its own, computed alone or among a thousand, in any order of steps."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain import random
from disttrain.component import UserError
from disttrain.data import GlobalOrder, LabelledDataset, PartitionedOrder, make_order, partitioned_order
from disttrain.data.order import EpochOrder, permutation, share
from disttrain.data.partitions import DirichletConfig, IidConfig, NoneConfig

seeds = st.integers(0, 2**63 - 1)
steps = st.integers(0, 60)
shares = st.integers(1, 9)


@st.composite
def divided(draw, largest=12):
    """Parts of one to six workers, of any sizes but none."""
    sizes = draw(st.lists(st.integers(1, largest), min_size=1, max_size=6))
    owners = draw(st.permutations(np.repeat(np.arange(len(sizes)), sizes).tolist()))
    return [np.flatnonzero(np.array(owners) == worker) for worker in range(len(sizes))]


def line(part, seed, length):
    """The reference: the first samples of a worker's endless line, one epoch after another."""
    samples = []
    epoch = 0
    while len(samples) < length:
        keys = {sample: random.key(seed, random.Stream.ORDER, epoch, sample) >> partitioned_order.EPOCH_BITS for sample in part}
        samples += sorted(part, key=lambda sample: (keys[sample], sample))
        epoch += 1
    return samples[:length]


def everybody(parts):
    return torch.arange(len(parts))


@given(divided(), seeds, steps, shares)
def test_a_batch_is_a_piece_of_each_workers_own_line(parts, seed, step, each):
    batch = PartitionedOrder(parts, seed).batch(step, each * len(parts), everybody(parts))
    assert batch.dtype == torch.int64
    for row, part in zip(batch.tolist(), parts, strict=True):
        assert row == line(part.tolist(), seed, (step + 1) * each)[step * each :]


@given(divided(), seeds, st.lists(st.tuples(steps, shares), min_size=1, max_size=12), st.data())
def test_a_batch_does_not_depend_on_those_asked_for_before(parts, seed, asked, data):
    used = PartitionedOrder(parts, seed)
    for step, each in asked:
        workers = torch.tensor(data.draw(st.lists(st.integers(0, len(parts) - 1), min_size=1, max_size=6)))
        fresh = PartitionedOrder(parts, seed)
        assert torch.equal(used.batch(step, each * len(parts), workers), fresh.batch(step, each * len(parts), workers))


@given(divided(), seeds, shares)
def test_steps_in_turn_visit_every_sample_once_per_epoch(parts, seed, each):
    order = PartitionedOrder(parts, seed)
    batches = torch.cat([order.batch(step, each * len(parts), everybody(parts)) for step in range(30)], dim=1)
    for row, part in zip(batches, parts, strict=True):
        epochs = row[: len(row) // len(part) * len(part)].view(-1, len(part))
        assert all(epoch.sort().values.tolist() == part.tolist() for epoch in epochs)


@given(divided(), seeds, steps, shares)
def test_a_worker_alone_gets_what_it_gets_among_the_others(parts, seed, step, each):
    together = PartitionedOrder(parts, seed).batch(step, each * len(parts), everybody(parts))
    for worker in range(len(parts)):
        alone = PartitionedOrder(parts, seed).batch(step, each * len(parts), torch.tensor([worker]))
        assert torch.equal(alone[0], together[worker])


@given(divided(), seeds, st.integers(0, 20), shares, st.data())
def test_a_workers_line_depends_on_its_own_part_only(parts, seed, step, each, data):
    worker = data.draw(st.integers(0, len(parts) - 1))
    merged = [np.sort(np.concatenate([part for other, part in enumerate(parts) if other != worker] or [np.array([10**6])]))]
    before = PartitionedOrder(parts, seed).batch(step, each * len(parts), torch.tensor([worker]))
    after = PartitionedOrder([*merged, parts[worker]], seed).batch(step, each * 2, torch.tensor([1]))
    assert torch.equal(before, after)


def test_very_many_epochs_at_once_are_shuffled_in_pieces(monkeypatch):
    parts = [np.array([0, 3, 5]), np.array([1]), np.array([2, 4])]
    whole = PartitionedOrder(parts, 7).batch(2, 60, everybody(parts))
    pieces = []
    shuffled = PartitionedOrder._shuffled
    # The width of the keys stays as it is: only the number of pairs that fit one sort is made small.
    monkeypatch.setattr(PartitionedOrder, "_shuffled", lambda self, *pairs: (pieces.append(1), shuffled(self, *pairs))[1])
    monkeypatch.setattr(partitioned_order, "MOST_EPOCHS", 4)
    assert torch.equal(PartitionedOrder(parts, 7).batch(2, 60, everybody(parts)), whole)
    assert len(pieces) > 2


def test_one_workers_line_is_the_global_one():
    both = (order.batch(3, 70, torch.tensor([0])) for order in (PartitionedOrder([np.arange(50)], 5), GlobalOrder(50, 1, 5)))
    assert torch.equal(*both)


def test_epochs_have_orders_of_their_own():
    order = PartitionedOrder([np.arange(30)], seed=1)
    assert len({tuple(order.batch(epoch, 30, torch.tensor([0]))[0].tolist()) for epoch in range(5)}) == 5


def test_a_sample_is_as_likely_at_any_place():
    rows = torch.cat([PartitionedOrder([np.arange(6)], seed).batch(0, 6, torch.tensor([0])) for seed in range(3000)])
    counts = torch.stack([(rows == sample).sum(dim=0) for sample in range(6)])
    assert (counts - 500).abs().max() < 120  # six standard deviations


def test_the_order_never_changes():
    batch = PartitionedOrder([np.arange(0, 10, 2), np.arange(1, 10, 2)], seed=1).batch(1, 8, torch.arange(2))
    assert batch.tolist() == [[6, 6, 8, 4], [7, 1, 3, 7]]


def test_writing_to_a_batch_leaves_later_ones_alone():
    order, both = PartitionedOrder([np.arange(4), np.arange(4, 6)], seed=0), torch.arange(2)
    expected = order.batch(0, 8, both).clone()
    order.batch(0, 8, both).zero_()
    assert torch.equal(order.batch(0, 8, both), expected)


def test_a_far_step_costs_no_more_than_the_first():
    assert PartitionedOrder([np.arange(7)], seed=0).batch(10**15, 64, torch.tensor([0])).shape == (1, 64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda order: order.batch(0, 3, torch.tensor([0])), "batch_size=3 cannot be shared equally by 2 workers"),
        (lambda order: order.batch(0, 0, torch.tensor([0])), "batch_size=0"),
        (lambda order: order.batch(0, 2, torch.tensor([0, 2])), r"workers must be in \[0, 2\), got \[2\]"),
        (lambda order: order.batch(0, 2, torch.tensor([-1])), r"workers must be in \[0, 2\), got \[-1\]"),
        (lambda order: order.batch(-1, 2, torch.tensor([0])), "step"),
    ],
)
@pytest.mark.parametrize("order", [PartitionedOrder([np.arange(3), np.arange(3, 5)], 0), GlobalOrder(5, 2, 0)], ids=type)
def test_impossible_requests_are_refused_with_their_values(order, call, message):
    with pytest.raises(ValueError, match=message):
        call(order)


def test_a_worker_without_samples_has_no_order():
    with pytest.raises(ValueError, match=r"workers \[1\] have none"):
        PartitionedOrder([np.arange(3), np.arange(0)], 0)


# Where nobody owns samples


@given(st.integers(1, 40), st.integers(1, 6), shares, seeds, steps, st.booleans())
def test_without_owners_the_global_batch_is_dealt_out_as_share_does(num_samples, workers, each, seed, step, shuffle):
    indices = EpochOrder(num_samples, seed, shuffle).batch_indices(step, each * workers)
    dealt = GlobalOrder(num_samples, workers, seed, shuffle).batch(step, each * workers, torch.arange(workers))
    assert torch.equal(dealt, torch.stack([share(indices, worker, workers) for worker in range(workers)]))


# From the config


def dataset(num_samples=40):
    return LabelledDataset(torch.zeros(num_samples, 1), torch.arange(num_samples) % 4)


def test_without_a_partition_workers_share_the_global_batch():
    order = make_order(NoneConfig(), dataset(), 4, seed=3)
    batch = order.batch(0, 40, torch.arange(4))
    assert order.report == ""
    assert batch.flatten().tolist() == permutation(40, 3, 0).tolist()


def test_with_a_partition_workers_keep_to_their_own():
    order = make_order(IidConfig(), dataset(), 4, seed=3)
    assert order.report.startswith("iid: 40 samples among 4 workers, each owns 10, of ")
    seen = [Counter(order.batch(step, 8, torch.arange(4)).flatten().tolist()) for step in range(10)]
    assert sum(seen[:5], Counter()) == Counter(range(40))
    rows = torch.cat([order.batch(step, 8, torch.arange(4)) for step in range(10)], dim=1)
    assert [sorted(set(row.tolist())) for row in rows] == [part.tolist() for part in order.parts]


def test_workers_without_a_sample_cannot_train():
    with pytest.raises(UserError, match=r"dirichlet leaves \d+ workers, such as \d+, without a sample .*on_small=repair"):
        make_order(DirichletConfig(alpha=1e-3, on_small="allow"), dataset(), 20, seed=0)


def test_workers_that_divide_otherwise_have_another_fingerprint():
    prints = [make_order(IidConfig(), dataset(), size, seed).fingerprint for size, seed in ((4, 0), (4, 0), (4, 1), (5, 0))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
