"""How the paper of single_merge.py deals out its data: mixtures of classes are each worker's own, samples are everybody's.

A worker draws q ~ Dirichlet(α, …, α) over the classes and takes as many samples as can be had in these shares without taking
one twice. Another may have the same ones, so that parts are no smaller for there being many workers. (The paper draws the
samples anew in every round.) The partitions of disttrain give every sample one owner: 45 digits for each of 32.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from disttrain import random
from disttrain.component import UserError
from disttrain.data.base import Dataset
from disttrain.data.partitions.base import Part, PartitionConfig, partitions


@partitions.register
class ClassMixtureConfig(PartitionConfig):
    """Each worker's own mixture of classes, from everybody's samples."""

    name: Literal["class_mixture"] = "class_mixture"
    alpha: float = Field(0.1, gt=0)
    """Concentration of each class."""

    def divide(self, dataset: Dataset, workers: int, seed: int) -> list[Part]:
        """Worker by worker."""
        if dataset.labels is None:
            raise UserError("partition.name=class_mixture needs data with classes, such as data.name=digits")
        labels = dataset.labels.numpy()
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        available = np.array([len(each) for each in members])
        parts = []
        for worker in range(workers):
            generator = np.random.default_rng(random.key(seed, random.Stream.PARTITION, 0, worker))
            shares = generator.dirichlet(np.full(len(members), self.alpha))
            size = (available / np.maximum(shares, 1e-12)).min()
            counts = np.minimum(np.round(shares * size).astype(np.int64), available)
            chosen = [generator.choice(each, count, replace=False) for each, count in zip(members, counts, strict=True)]
            parts.append(np.sort(np.concatenate(chosen)))
        return parts
