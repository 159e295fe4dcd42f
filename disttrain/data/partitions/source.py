"""The natural partition: whole sources (folders, authors, sites) go to workers.

Largest first, each to the worker that owns least so far: Graham's longest-processing-time rule ("Bounds on Multiprocessing
Timing Anomalies", 1969), after which the largest part is at most 4/3 of the smallest possible. No seed matters.
"""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from disttrain.data.base import Dataset
from disttrain.data.partitions.base import OwnershipConfig, partitions


@partitions.register
class SourceConfig(OwnershipConfig):
    """All samples of one source belong to one worker; sizes are balanced as well as whole sources allow.

    on_small=repair breaks sources up, where there are fewer of them than workers.
    """

    name: Literal["source"] = "source"

    def owners(self, dataset: Dataset, workers: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Of equally large sources the first goes first; of equally poor workers, the first gets it."""
        _, source, sizes = np.unique(self.sources(dataset), return_inverse=True, return_counts=True)
        owner_of_source = np.empty(len(sizes), dtype=np.int64)
        loads = [(0, worker) for worker in range(workers)]
        for largest in np.argsort(-sizes, kind="stable"):
            load, worker = loads[0]
            owner_of_source[largest] = worker
            heapq.heapreplace(loads, (load + int(sizes[largest]), worker))
        return owner_of_source[source]
