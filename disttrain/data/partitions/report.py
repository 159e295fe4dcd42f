"""What a partition looks like, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from disttrain.data.base import Dataset
from disttrain.data.partitions.base import Part


class Spread(NamedTuple):
    """Of a number that each worker has."""

    smallest: int
    median: float
    largest: int

    def __str__(self) -> str:
        if self.smallest == self.largest:
            return f"{self.smallest:,}"
        return f"{self.smallest:,} to {self.largest:,} (median {self.median:,.10g})"


@dataclass(frozen=True)
class PartitionReport:
    """How evenly samples are divided.

    Args:
        num_samples: of all workers.
        num_workers: how many there are.
        sizes: samples that each worker owns.
        num_classes: in all the data; None: the data has no classes.
        classes: that each worker has samples of.
        num_sources: in all the data; None: the data does not tell.
        sources: that each worker has samples of.
    """

    num_samples: int
    num_workers: int
    sizes: Spread
    num_classes: int | None = None
    classes: Spread | None = None
    num_sources: int | None = None
    sources: Spread | None = None

    def __str__(self) -> str:
        text = f"{self.num_samples:,} samples among {self.num_workers:,} workers, each owns {self.sizes}"
        if self.classes is not None:
            text += f", of {self.classes} of the {self.num_classes} classes"
        if self.sources is not None:
            text += f", from {self.sources} of the {self.num_sources:,} sources"
        return text


def report(parts: Sequence[Part], dataset: Dataset) -> PartitionReport:
    """Sizes, and the classes and sources that each worker has, where the data tells them."""
    num_classes, classes = _kinds(parts, dataset.labels)
    num_sources, sources = _kinds(parts, dataset.sources)
    sizes = _spread([len(part) for part in parts])
    return PartitionReport(len(dataset), len(parts), sizes, num_classes, classes, num_sources, sources)


def _kinds(parts: Sequence[Part], of_sample: Tensor | None) -> tuple[int | None, Spread | None]:
    """How many different values there are, and how many each worker has."""
    if of_sample is None:
        return None, None
    values = of_sample.numpy()
    return len(np.unique(values)), _spread([len(np.unique(values[part])) for part in parts])


def _spread(numbers: list[int]) -> Spread:
    return Spread(min(numbers), float(np.median(numbers)), max(numbers))
