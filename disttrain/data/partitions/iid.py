"""The even partition: every worker's samples are a fair sample of all."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from disttrain.data.base import Dataset
from disttrain.data.partitions.base import OwnershipConfig, partitions


@partitions.register
class IidConfig(OwnershipConfig):
    """Shuffled and dealt out: parts whose sizes differ by one at most."""

    name: Literal["iid"] = "iid"

    def owners(self, dataset: Dataset, workers: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """A shuffle of 0, 1, …, workers − 1, 0, 1, …"""
        return generator.permutation(np.arange(len(dataset)) % workers)
