"""The picture of who has what."""

import numpy as np
import pytest
import torch

from disttrain.data import LabelledDataset, TokenDataset
from disttrain.data.partitions import plot_partition
from disttrain.data.partitions.plot import counts_by_kind


def of_sources(sources, names):
    tokens = np.zeros(2 * len(sources) + 1, dtype=np.uint8)
    return TokenDataset(tokens, 2, sources=torch.tensor(sources), source_names=tuple(names))


def test_counts_of_classes():
    dataset = LabelledDataset(torch.zeros(6, 1), torch.tensor([7, 7, 2, 2, 2, 5]))
    counts, names, kind = counts_by_kind([np.array([0, 2]), np.array([1, 3, 4, 5]), np.array([], dtype=np.int64)], dataset)
    assert (names, kind) == (["2", "5", "7"], "class")
    assert counts.tolist() == [[1, 2, 0], [0, 1, 0], [1, 1, 0]]


def test_of_many_sources_the_small_ones_share_a_row(monkeypatch):
    monkeypatch.setattr("disttrain.data.partitions.plot.MOST_SOURCES", 2)
    dataset = of_sources([0, 1, 1, 2, 2, 2, 3], ["a", "b", "c", "d"])
    counts, names, kind = counts_by_kind([np.arange(4), np.arange(4, 7)], dataset)
    assert (names, kind) == (["c", "b", "2 others"], "source")
    assert counts.tolist() == [[1, 2], [2, 0], [1, 1]]


@pytest.mark.parametrize("dataset", [
    LabelledDataset(torch.zeros(6, 1), torch.tensor([7, 7, 2, 2, 2, 5])),
    of_sources([0, 1, 1, 0, 0, 0], ["$\\frac$ {", "\udce9 文"]),
    TokenDataset(np.zeros(13, dtype=np.uint8), 2),
], ids=["classes", "sources with odd names", "neither"])  # fmt: skip
def test_a_picture_is_drawn_of_whatever_the_data_tells(tmp_path, dataset):
    plot_partition([np.arange(3), np.arange(3, 6), np.array([], dtype=np.int64)], dataset, tmp_path / "partition.png")
    assert (tmp_path / "partition.png").read_bytes().startswith(b"\x89PNG")


def test_ten_thousand_clients_are_drawn(tmp_path):
    dataset = LabelledDataset(torch.zeros(10_000, 1), torch.arange(10_000) % 10)
    plot_partition(list(np.arange(10_000)[:, None]), dataset, tmp_path / "partition.png")
    assert (tmp_path / "partition.png").exists()
