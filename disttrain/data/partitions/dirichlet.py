"""Label skew: each class is divided among the workers in proportions of its own.

For each class k, p_k ~ Dirichlet_N(α) and worker i gets p_ki of its samples (Yurochkin et al., "Bayesian Nonparametric
Federated Learning of Neural Networks", arXiv 1905.12022). The common code rounds the bounds ⌊cumsum(p)·n_k⌋; here counts
are rounded by largest remainder, so that each is less than 1 off. The "balanced" variant, which gives nothing more to
workers that own n/N already, is not implemented: it depends on the order of the classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from disttrain.data.base import Dataset
from disttrain.data.partitions.base import OwnershipConfig, partitions
from disttrain.data.partitions.rounding import largest_remainder


@partitions.register
class DirichletConfig(OwnershipConfig):
    """Each class is divided in proportions drawn from a Dirichlet distribution: classes and sizes both differ."""

    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(0.5, ge=1e-3, le=1e6)
    """Concentration: small ones give each class to few workers, large ones give all workers the same."""

    sizes_are_drawn: ClassVar[bool] = True

    def owners(self, dataset: Dataset, workers: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Class by class."""
        labels = self.labels(dataset)
        owners = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            counts = largest_remainder(generator.dirichlet(np.full(workers, self.alpha)), len(members))
            owners[members] = np.repeat(np.arange(workers), counts)
        return owners
