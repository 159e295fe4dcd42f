"""Every partition divides without loss, deterministically, leaves nobody with too little, and is what its name says."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from disttrain.component import UserError
from disttrain.data import Dataset, RandomTokensConfig
from disttrain.data.partitions import (
    ClientDirichletConfig,
    DirichletConfig,
    IidConfig,
    NoneConfig,
    QuantitySkewConfig,
    ShardsConfig,
    SourceConfig,
    partitions,
    report,
)
from disttrain.data.partitions.rounding import largest_remainder


class Facts(Dataset):
    """What a partition sees of a data set."""

    def __init__(self, labels, sources=None):
        self.labels, self.sources = torch.tensor(labels, dtype=torch.int64), None
        if sources is not None:
            self.sources = torch.tensor(sources, dtype=torch.int64)

    def __len__(self):
        return len(self.labels)


OWNING = [name for name in partitions.names() if name != "none"]
seeds = st.integers(0, 2**63 - 1)
worker_counts = st.integers(1, 12)
alphas = st.floats(1e-3, 1e6)
facts = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=150).map(
    lambda pairs: Facts(*zip(*pairs, strict=True))
)


@st.composite
def skewed(draw, **settings):
    """Any partition that gives samples owners, as skewed as it can be."""
    name = draw(st.sampled_from(OWNING))
    strength = {"dirichlet": "alpha", "client_dirichlet": "alpha", "quantity_skew": "beta"}.get(name)
    if strength:
        settings[strength] = draw(alphas)
    if name == "shards":
        settings["per_worker"] = draw(st.integers(1, 4))
    return partitions[name](**settings)


def sizes_of(parts):
    return [len(part) for part in parts]


def balanced(num_classes, each):
    """``each`` samples of every class, the classes mixed."""
    return Facts(list(range(num_classes)) * each)


# Of all of them


@given(skewed(on_small="allow"), facts, worker_counts, seeds)
def test_parts_are_sorted_and_disjoint_and_together_everything(partition, dataset, workers, seed):
    parts = partition.divide(dataset, workers, seed)
    assert len(parts) == workers
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(dataset)))


@given(skewed(on_small="allow"), facts, worker_counts, seeds)
def test_the_same_seed_gives_the_same_parts(partition, dataset, workers, seed):
    first, second = partition.divide(dataset, workers, seed), partition.divide(dataset, workers, seed)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", [name for name in OWNING if name != "source"])
def test_another_seed_gives_other_parts(name):
    divided = [partitions[name](on_small="allow").divide(balanced(5, 40), 4, seed) for seed in range(2)]
    assert any(not np.array_equal(a, b) for a, b in zip(*divided, strict=True))


@given(st.data(), facts, worker_counts, seeds)
def test_repair_brings_everybody_to_the_least_and_takes_no_more_than_is_missing(data, dataset, workers, seed):
    workers = min(workers, len(dataset))
    least = data.draw(st.integers(1, len(dataset) // workers))
    repairing = data.draw(skewed(min_samples=least, on_small="repair"))
    as_drawn = repairing.model_copy(update={"on_small": "allow", "min_samples": 1}).divide(dataset, workers, seed)
    repaired = repairing.divide(dataset, workers, seed)
    assert min(sizes_of(repaired)) >= least
    assert sorted(np.concatenate(repaired).tolist()) == list(range(len(dataset)))
    for before, after in zip(as_drawn, repaired, strict=True):
        if len(before) < least:
            assert len(after) == least
            assert set(before.tolist()) <= set(after.tolist())
        else:
            assert set(after.tolist()) <= set(before.tolist())


def test_repair_takes_from_the_largest():
    dataset = Facts([0] * 20, [0] * 12 + [1] * 7 + [2])
    parts = SourceConfig(min_samples=4, on_small="repair").divide(dataset, 3, 0)
    assert sizes_of(parts) == [9, 7, 4]


SKEWED = DirichletConfig(alpha=0.1)


def test_an_error_names_the_workers_the_least_and_what_to_do():
    with pytest.raises(UserError, match=r"dirichlet leaves \d+ of 30 workers with less than .*min_samples=2 .*on_small=repair"):
        SKEWED.model_copy(update={"min_samples": 2}).divide(balanced(10, 10), 30, 0)


def test_retrying_draws_until_all_have_enough_or_gives_up():
    dataset, mild = balanced(4, 25), DirichletConfig(alpha=1.0, min_samples=8)
    refused = 0
    for seed in range(20):
        drawn = mild.model_copy(update={"min_samples": 1, "on_small": "allow"}).divide(dataset, 4, seed)
        tried = mild.model_copy(update={"on_small": "retry", "retries": 1000}).divide(dataset, 4, seed)
        assert min(sizes_of(tried)) >= 8
        if min(sizes_of(drawn)) >= 8:
            assert all(np.array_equal(a, b) for a, b in zip(drawn, tried, strict=True))
        else:
            refused += 1
    assert 0 < refused < 20
    with pytest.raises(UserError, match=r"after 4 draws"):
        DirichletConfig(alpha=0.01, min_samples=5, on_small="retry", retries=3).divide(dataset, 20, 0)


@pytest.mark.parametrize("on_small", ["error", "retry", "repair"])
def test_too_little_data_for_all_is_told_without_drawing(on_small):
    with pytest.raises(UserError, match=r"min_samples=3 needs 15 training samples for 5 workers, and the data has 12"):
        DirichletConfig(min_samples=3, on_small=on_small).divide(balanced(4, 3), 5, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "iid", "on_small": "retry"}, "same sizes in every draw"),
        ({"name": "dirichlet", "retries": 3}, "retries=3 is for on_small=retry, not on_small=error"),
        ({"name": "dirichlet", "on_small": "allow", "min_samples": 3}, "would ignore min_samples=3"),
        ({"name": "dirichlet", "alpha": 0.0}, "alpha"),
        ({"name": "shards", "per_worker": 0}, "per_worker"),
        ({"name": "none", "min_samples": 1}, "min_samples"),
    ],
)
def test_settings_that_are_wrong_or_would_be_ignored_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        partitions[settings["name"]](**settings)


@pytest.mark.parametrize("name", ["dirichlet", "client_dirichlet", "shards"])
def test_data_without_classes_is_refused_with_data_that_has_them(name):
    dataset = RandomTokensConfig(sequences=4).build(seed=0).train
    with pytest.raises(UserError, match=rf"{name} divides by class, .* use data.name=digits.*, or partition.name=iid"):
        partitions[name]().divide(dataset, 2, 0)


def test_data_without_sources_is_refused_with_data_that_has_them():
    with pytest.raises(UserError, match=r"source divides by source, .* use data.name=prepared or python_source or text"):
        SourceConfig().divide(balanced(2, 4), 2, 0)


def test_none_gives_nobody_anything():
    assert partitions.default == "none"
    assert NoneConfig().divide(balanced(2, 4), 2, 0) is None


# Of each


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda shares: sum(shares) > 1e-3), st.integers(0, 10**6))
def test_the_largest_remainder_is_exact_and_less_than_one_off(shares, total):
    shares = np.array(shares)
    counts = largest_remainder(shares, total)
    assert counts.sum() == total
    assert (np.abs(counts - shares / shares.sum() * total) < 1 + 1e-6).all()
    assert (counts[shares == 0] <= 1).all()


def test_the_largest_fractions_are_rounded_up():
    assert largest_remainder(np.array([0.5, 0.26, 0.24]), 10).tolist() == [5, 3, 2]
    assert largest_remainder(np.array([1.0, 1.0, 1.0]), 4).tolist() == [2, 1, 1]
    assert largest_remainder(np.array([1.0] * 100), 3).tolist() == [1] * 3 + [0] * 97


@given(facts, worker_counts, seeds)
def test_iid_sizes_differ_by_one_at_most(dataset, workers, seed):
    sizes = sizes_of(IidConfig(on_small="allow").divide(dataset, workers, seed))
    assert max(sizes) - min(sizes) <= 1


@given(facts, worker_counts, alphas, seeds)
def test_client_dirichlet_sizes_differ_by_one_at_most(dataset, workers, alpha, seed):
    sizes = sizes_of(ClientDirichletConfig(alpha=alpha, on_small="allow").divide(dataset, workers, seed))
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 8), seeds)
def test_a_huge_alpha_divides_every_class_equally(num_classes, each, workers, seed):
    dataset = balanced(num_classes, each * workers)
    for part in DirichletConfig(alpha=1e6).divide(dataset, workers, seed):
        counts = np.bincount(dataset.labels.numpy()[part], minlength=num_classes)
        assert (np.abs(counts - each) <= 1 + 0.05 * each).all()


def test_a_huge_alpha_makes_every_clients_mixture_that_of_the_data():
    dataset = balanced(5, 2000)
    for part in ClientDirichletConfig(alpha=1e6).divide(dataset, 5, 0):
        counts = np.bincount(dataset.labels.numpy()[part], minlength=5)
        assert (np.abs(counts - 400) < 110).all()  # six standard deviations of a multinomial's cell


def test_a_tiny_alpha_gives_each_class_to_one_worker_and_each_client_one_class():
    dataset = balanced(10, 100)
    labels = dataset.labels.numpy()
    parts = DirichletConfig(alpha=1e-3, on_small="allow").divide(dataset, 10, 0)
    assert sum(len(np.unique(labels[part])) for part in parts) <= 12
    first = ClientDirichletConfig(alpha=1e-3).divide(dataset, 10, 0)[0]
    assert len(np.unique(labels[first])) == 1


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 4), seeds)
def test_a_worker_has_no_more_classes_than_its_shards_reach_across(class_sizes, workers, per_worker, seed):
    dataset = Facts(np.repeat(np.arange(len(class_sizes)), class_sizes).tolist())
    parts = ShardsConfig(per_worker=per_worker, on_small="allow").divide(dataset, workers, seed)
    shard = -(-len(dataset) // (workers * per_worker))
    assert max(sizes_of(parts)) - min(sizes_of(parts)) <= per_worker
    if shard <= min(class_sizes):  # then a shard reaches across two classes at most
        assert all(len(np.unique(dataset.labels.numpy()[part])) <= 2 * per_worker for part in parts)


def test_shards_that_fit_the_classes_give_no_worker_more_classes_than_shards():
    parts = ShardsConfig(per_worker=2).divide(balanced(10, 40), 20, 0)
    dataset = balanced(10, 40)
    assert sizes_of(parts) == [20] * 20
    assert all(len(np.unique(dataset.labels.numpy()[part])) <= 2 for part in parts)


def test_quantity_skew_is_uneven_in_size_only():
    dataset = balanced(4, 2500)
    parts = QuantitySkewConfig(on_small="allow").divide(dataset, 8, 0)
    assert max(sizes_of(parts)) > 3 * min(sizes_of(parts))
    largest = max(parts, key=len)
    shares = np.bincount(dataset.labels.numpy()[largest], minlength=4) / len(largest)
    assert (np.abs(shares - 0.25) < 0.05).all()


def test_quantity_skews_sizes_have_the_variance_of_a_dirichlet():
    sizes = np.concatenate(
        [sizes_of(QuantitySkewConfig(beta=2.0, on_small="allow").divide(balanced(1, 1000), 4, seed)) for seed in range(300)]
    )
    variance = 0.25 * 0.75 / (4 * 2 + 1)  # of one share
    assert np.var(sizes / 1000) == pytest.approx(variance, rel=0.2)


@given(facts, worker_counts)
def test_sources_stay_whole_and_loads_are_balanced(dataset, workers):
    parts = SourceConfig(on_small="allow").divide(dataset, workers, 0)
    sources = dataset.sources.numpy()
    owned = [set(sources[part].tolist()) for part in parts]
    assert sum(map(len, owned)) == len(set(sources.tolist()))
    largest_source = np.bincount(sources).max()
    assert max(sizes_of(parts)) <= len(dataset) / workers + largest_source


# What is said about them


def test_the_report_says_sizes_classes_and_sources():
    parts = [np.array([0]), np.array([1, 2, 3]), np.array([4, 5])]
    text = str(report(parts, Facts([0, 0, 1, 1, 2, 2], [3, 3, 3, 4, 4, 4])))
    sizes, classes, sources = "1 to 3 (median 2)", "1 to 2 (median 1)", "1 to 2 (median 1)"
    assert text == f"6 samples among 3 workers, each owns {sizes}, of {classes} of the 3 classes, from {sources} of the 2 sources"


def test_the_report_says_nothing_of_what_is_not_known():
    dataset = RandomTokensConfig(sequences=4).build(seed=0).train
    assert str(report(IidConfig().divide(dataset, 2, 0), dataset)) == "4 samples among 2 workers, each owns 2"
