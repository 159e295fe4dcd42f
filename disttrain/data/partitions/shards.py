"""Few classes per worker: sorted by class, cut into shards, some shards for each worker.

From McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv 1602.05629), who gave
2 shards to each of 100 workers. Where n is not a multiple of the number of shards, their sizes differ by one; others drop
the remainder. A shard may reach across two classes or more, so a worker may have more classes than shards.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from disttrain.data.base import Dataset
from disttrain.data.partitions.base import OwnershipConfig, partitions


@partitions.register
class ShardsConfig(OwnershipConfig):
    """The samples sorted by class and cut into equal shards, of which each worker gets the same number, at random."""

    name: Literal["shards"] = "shards"
    per_worker: int = Field(2, ge=1)
    """Shards for each worker: the fewer, the fewer classes it has."""

    def owners(self, dataset: Dataset, workers: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Deal out the shards, of which the first few have one sample more."""
        labels = self.labels(dataset)
        num_shards = workers * self.per_worker
        sizes = len(labels) // num_shards + (np.arange(num_shards) < len(labels) % num_shards)
        owner_of_shard = generator.permutation(np.repeat(np.arange(workers), self.per_worker))
        owners = np.empty(len(labels), dtype=np.int64)
        owners[np.argsort(labels, kind="stable")] = np.repeat(owner_of_shard, sizes)
        return owners
