"""No partition: all workers draw from the same samples."""

from __future__ import annotations

from typing import Literal

from disttrain.data.base import Dataset
from disttrain.data.partitions.base import Part, PartitionConfig, partitions


@partitions.register
class NoneConfig(PartitionConfig):
    """Nobody owns a sample: each step's global batch is taken from all of them, and dealt out."""

    name: Literal["none"] = "none"

    def divide(self, dataset: Dataset, workers: int, seed: int) -> list[Part] | None:
        """None, whatever the data."""
        return None
