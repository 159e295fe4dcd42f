"""Label skew with equal sizes: each worker has a mixture of classes of its own.

Worker i draws q_i ~ Dirichlet_C(α·π) over the classes, where π are their shares of the data, and then its samples, without
replacement, from those mixtures (Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification", arXiv 1909.06335). α is the sum of the concentrations: α = C·a is about what others call Dir(a).

Once a class is used up, the others' shares are scaled up. Workers draw in turn, so the last ones get what is left: their
mixtures are flatter than α says. All samples are given away, n/N to each worker.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from disttrain.data.base import Dataset
from disttrain.data.partitions.base import OwnershipConfig, partitions

NEGLIGIBLE = 1e-200
"""Shares that sum to less can no longer be scaled up to 1 exactly enough."""


@partitions.register
class ClientDirichletConfig(OwnershipConfig):
    """Each worker's mixture of classes is drawn from a Dirichlet distribution; sizes differ by one at most."""

    name: Literal["client_dirichlet"] = "client_dirichlet"
    alpha: float = Field(1.0, ge=1e-3, le=1e6)
    """Concentration: small ones give a worker few classes, large ones give it the mixture of all data."""

    def owners(self, dataset: Dataset, workers: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Worker by worker."""
        labels = self.labels(dataset)
        classes, left = np.unique(labels, return_counts=True)
        concentrations = self.alpha * left / len(labels)
        waiting = [generator.permutation(np.flatnonzero(labels == label)) for label in classes]
        owners = np.empty(len(labels), dtype=np.int64)
        for worker in range(workers):
            size = len(labels) // workers + (worker < len(labels) % workers)
            counts = draw_counts(generator.dirichlet(concentrations), size, left, generator)
            for members, count, end in zip(waiting, counts, left, strict=True):
                owners[members[end - count : end]] = worker
            left = left - counts
        return owners


def draw_counts(
    shares: NDArray[np.float64], size: int, left: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """How many of each class ``[C]`` are among ``size`` samples drawn in these shares, no more than are ``left``.

    A pass that does not reach ``size`` has used up a class, so there are at most C of them.
    """
    counts = np.zeros_like(left)
    while missing := size - int(counts.sum()):
        open_shares = np.where(counts < left, shares, 0.0)
        if open_shares.sum() < NEGLIGIBLE:  # all that the worker wanted is used up: it takes the rest as it comes
            open_shares = (left - counts).astype(np.float64)
        counts = np.minimum(counts + generator.multinomial(missing, open_shares / open_shares.sum()), left)
    return counts
