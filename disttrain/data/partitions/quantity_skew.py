"""Workers that own unequally much of the same: sizes ∝ Dirichlet_N(β), samples at random.

From Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos" (arXiv 2102.02079), whose β is 0.5.
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
class QuantitySkewConfig(OwnershipConfig):
    """Parts whose sizes are drawn from a Dirichlet distribution; each is a fair sample of all data."""

    name: Literal["quantity_skew"] = "quantity_skew"
    beta: float = Field(0.5, ge=1e-3, le=1e6)
    """Concentration: small ones give nearly all to few workers, large ones give all workers the same."""

    sizes_are_drawn: ClassVar[bool] = True

    def owners(self, dataset: Dataset, workers: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Sizes first, then a shuffle."""
        sizes = largest_remainder(generator.dirichlet(np.full(workers, self.beta)), len(dataset))
        return generator.permutation(np.repeat(np.arange(workers), sizes))
