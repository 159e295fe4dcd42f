"""The script that asks whether ordered learning helps."""

import time

import numpy as np
import ordered_learning
import pytest
import torch

from disttrain.federated import PacingConfig


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setattr(ordered_learning, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(ordered_learning, "ROUNDS", 4)
    monkeypatch.setattr(ordered_learning, "PACING", PacingConfig(start=0.4, until=1.0))


@pytest.mark.parametrize("order", ordered_learning.ORDERS)
def test_every_order_runs_and_is_kept(order):
    arguments = ("two shards, 30 % wrong", order, 0.1, 0)
    first = ordered_learning.train(*arguments, deadline=time.monotonic() + 60)
    assert 0 < first.accuracy < 1
    assert ordered_learning.train(*arguments, deadline=0.0) == first, "read, not run again"
    assert order in ordered_learning.line(order, [first])


def test_orders_differ():
    results = {order: ordered_learning.train("iid", order, 0.1, 0, 1e18).accuracy for order in ("none", "curriculum", "anti")}
    assert len(set(results.values())) == 3


def test_labels_are_wrong_as_often_as_asked_for_and_right_where_accuracy_is_measured():
    right, wrong = ordered_learning.data(2, 0.0, 0), ordered_learning.data(2, 0.3, 0)
    differ = right.problem._dataset.labels != wrong.problem._dataset.labels
    assert 0.25 < differ.double().mean() < 0.35
    assert torch.equal(right._labels, wrong._labels)
    assert right.accuracy(right.expert) > 0.85


@pytest.mark.parametrize(("shards", "most_classes"), [(0, 10), (1, 2), (2, 4)])
def test_everything_is_dealt_out_once(shards, most_classes):
    labels = torch.arange(10).repeat_interleave(120)
    parts = ordered_learning.divide(labels, shards, torch.Generator().manual_seed(0))
    assert len(parts) == 100
    assert sorted(np.concatenate(parts).tolist()) == list(range(1200))
    assert max(len(labels[torch.from_numpy(part)].unique()) for part in parts) <= most_classes


def test_gains_are_seed_by_seed():
    def results(*accuracies):
        return [ordered_learning.Result("iid", "none", 0.1, seed, each, 0.5) for seed, each in enumerate(accuracies)]

    assert ordered_learning.gain(results(0.9, 0.8), results(0.8, 0.82), "accuracy") == "+4.0 (1 of 2 seeds better)"
    table = {"iid": {"none": results(0.8), "random": results(0.7), "curriculum": results(0.9)}}
    assert ordered_learning.verdicts(table) == [
        "iid: curriculum against none: +10.0 (1 of 1 seeds better) at the end, +0.0 (0 of 1 seeds better) early",
        "iid: curriculum against random: +20.0 (1 of 1 seeds better) at the end, +0.0 (0 of 1 seeds better) early",
    ]
