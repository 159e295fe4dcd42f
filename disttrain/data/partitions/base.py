"""The seam of the partitions: how training samples are divided among workers that keep them for the whole run.

A partition names one owner for each sample, int64 ``[n]``. So parts are disjoint and nothing is lost, whatever is drawn.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from disttrain import random
from disttrain.component import ComponentConfig, Registry, UserError
from disttrain.data.base import Dataset, data_sources
from disttrain.data.partitions.repair import repair

Part: TypeAlias = NDArray[np.int64]

DEFAULT_RETRIES = 10


class PartitionConfig(ComponentConfig):
    """Base of all partitions' configs."""

    def divide(self, dataset: Dataset, workers: int, seed: int) -> list[Part] | None:
        """Each worker's samples, sorted, int64 ``[n_worker]``; together they are ``range(n)``. None: nobody owns any.

        Args:
            dataset: the training samples.
            workers: how many there are.
            seed: the run's; the same seed, data and number of workers give the same parts.

        Raises:
            UserError: if the data lacks what it would be divided by, or a worker's part would be too small.
        """
        raise NotImplementedError(f"{type(self).__name__} must define divide()")


partitions: Registry[PartitionConfig] = Registry("partition", default="none")


class OwnershipConfig(PartitionConfig):
    """Base of the configs of partitions that give every sample an owner."""

    min_samples: int = Field(1, ge=1)
    """What every worker should own at least."""
    on_small: Literal["error", "retry", "repair", "allow"] = "error"
    """What to do about a worker that owns less. error: refuse to start. retry: draw anew, up to `retries` times. repair: move
    random samples to it, each from the worker that owns most at that moment. allow: leave it so; training needs one sample
    per worker still."""
    retries: int = Field(DEFAULT_RETRIES, ge=1)
    """Further draws before on_small=retry gives up."""

    sizes_are_drawn: ClassVar[bool] = False
    """Whether another draw could give parts of other sizes."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.on_small == "retry" and not self.sizes_are_drawn:
            raise ValueError("on_small=retry would get the same sizes in every draw; use error, repair or allow")
        if self.on_small != "retry" and self.retries != DEFAULT_RETRIES:
            raise ValueError(f"retries={self.retries} is for on_small=retry, not on_small={self.on_small}")
        if self.on_small == "allow" and self.min_samples != 1:
            raise ValueError(f"on_small=allow would ignore min_samples={self.min_samples}; set one of them")
        return self

    def owners(self, dataset: Dataset, workers: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """One draw: the worker that each sample belongs to, int64 ``[n]`` in ``range(workers)``."""
        raise NotImplementedError(f"{type(self).__name__} must define owners()")

    def divide(self, dataset: Dataset, workers: int, seed: int) -> list[Part]:
        """The parts of the first draw that leaves no worker with too little, or what ``on_small`` makes of it."""
        if self.on_small != "allow" and len(dataset) < workers * self.min_samples:
            raise UserError(f"partition.min_samples={self.min_samples} needs {workers * self.min_samples} training samples for "
                            f"{workers} workers, and the data has {len(dataset)}: use more data or fewer workers")  # fmt: skip
        draws = 1 + self.retries * (self.on_small == "retry")
        for draw in range(draws):
            generator = np.random.default_rng(random.key(seed, random.Stream.PARTITION, draw))
            owners = self.owners(dataset, workers, generator)
            sizes = np.bincount(owners, minlength=workers)
            if self.on_small == "allow" or sizes.min() >= self.min_samples:
                return parts_of(owners, workers)
        if self.on_small == "repair":
            return parts_of(repair(owners, workers, self.min_samples, generator), workers)
        raise self._too_small(sizes, draws)

    def _too_small(self, sizes: NDArray[np.int64], draws: int) -> UserError:
        small = (sizes < self.min_samples).sum()
        return UserError(
            f"partition.name={self.name} leaves {small} of {len(sizes)} workers with less than "
            f"partition.min_samples={self.min_samples} samples, one with {sizes.min()}{f', after {draws} draws' * (draws > 1)}: "
            "use partition.on_small=repair, a milder partition or fewer workers"
        )

    def labels(self, dataset: Dataset) -> NDArray[np.int64]:
        """The samples' classes, int64 ``[n]``; a UserError if the data has none."""
        if dataset.labels is not None:
            return dataset.labels.numpy()
        known = [name for name in data_sources.names() if data_sources[name].has_labels]
        raise UserError(f"partition.name={self.name} divides by class, and this data has no classes: "
                        f"use data.name={' or '.join(known)}, or partition.name=iid, quantity_skew or source")  # fmt: skip

    def sources(self, dataset: Dataset) -> NDArray[np.int64]:
        """Where the samples come from, int64 ``[n]``; a UserError if the data does not tell."""
        if dataset.sources is not None:
            return dataset.sources.numpy()
        known = [name for name in data_sources.names() if data_sources[name].has_sources]
        raise UserError(f"partition.name={self.name} divides by source, and this data does not tell where samples come from: "
                        f"use data.name={' or '.join(known)}, or another partition")  # fmt: skip


def parts_of(owners: NDArray[np.int64], workers: int) -> list[Part]:
    """Each worker's samples in ascending order, from the owner of each sample, int64 ``[n]``."""
    by_owner = np.argsort(owners, kind="stable")
    sizes = np.bincount(owners, minlength=workers)
    return np.split(by_owner, np.cumsum(sizes)[:-1])
