"""The order of data that is divided: each worker visits its own samples, epoch by epoch, for any number of workers at once.

Worker r's samples of its epoch 0, then those of its epoch 1, and so on, form an endless line of its own. Step s of b samples per
worker takes its positions ``[s·b, (s+1)·b)``. In epoch e the samples stand in the order of their keys (seed, ORDER, e, sample),
so that a worker's order depends on nothing but the seed and its samples: whether it is computed alone, as by a worker of a real
run, or among a thousand, as by a simulator, makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from disttrain import random
from disttrain.component import UserError
from disttrain.data.base import Dataset, fingerprint
from disttrain.data.mixture import JoinedDataset, MixedOrder
from disttrain.data.order import GlobalOrder, Order, check_workers, share_size
from disttrain.data.partitions import Part, PartitionConfig, report

Ints = NDArray[np.int64]

EPOCH_BITS = 20
MOST_EPOCHS = 2**EPOCH_BITS
"""How many epochs, of one worker or of several, are shuffled in one sort; keys lose their lowest 20 bits to the number."""


def make_order(partition: PartitionConfig, dataset: Dataset, size: int, seed: int) -> Order:
    """The order in which ``size`` workers visit the training samples, for training and for simulating it.

    Raises:
        UserError: if the data cannot be divided so, or a worker would own nothing.
    """
    parts = partition.divide(dataset, size, seed)
    if isinstance(dataset, JoinedDataset) and dataset.weights is not None:
        if parts is not None:
            raise UserError(f"data.weights mix what partition.name={partition.name} would divide: use one of them")
        return MixedOrder([len(part) for part in dataset.parts], dataset.weights, size, seed)
    if parts is None:
        return GlobalOrder(len(dataset), size, seed)
    if idle := [worker for worker, part in enumerate(parts) if len(part) == 0]:
        which = f"worker {idle[0]}" if len(idle) == 1 else f"{len(idle)} workers, such as {idle[0]},"
        raise UserError(f"partition.name={partition.name} leaves {which} without a sample to train on: "
                        "use partition.on_small=repair, a milder partition or fewer workers")  # fmt: skip
    return PartitionedOrder(parts, seed, f"{partition.name}: {report(parts, dataset)}")


class PartitionedOrder:
    """Each worker's own samples once in each of its epochs, whose length is theirs; epochs of workers do not coincide.

    A batch for 1,000 workers costs a millisecond or two, because all epochs that begin in it are shuffled in one sort.

    Args:
        parts: of each worker, its samples, int64 ``[n_worker]``; none may be empty.
        seed: the run's.
        report: what the partition looks like.

    Raises:
        ValueError: if a worker has no sample.
    """

    def __init__(self, parts: Sequence[Part], seed: int, report: str = "") -> None:
        if empty := [worker for worker, part in enumerate(parts) if len(part) == 0]:
            raise ValueError(f"every worker needs at least 1 sample, workers {empty} have none")
        self.parts, self.seed, self.report = tuple(parts), seed, report
        self._samples = np.concatenate(self.parts)
        self._sizes = np.array([len(part) for part in parts])
        self._starts = np.cumsum(self._sizes) - self._sizes
        # The newest epoch of each worker: a cache, which no result depends on.
        self._epoch, self._newest = np.full(len(parts), -1), np.empty_like(self._samples)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 in hex; workers that agree on it divide the data in the same way."""
        return fingerprint(*self.parts)

    def batch(self, step: int, batch_size: int, workers: Tensor) -> Tensor:
        """The next samples of each worker's line; see `Order`."""
        share = share_size(batch_size, len(self.parts))
        if step < 0:
            raise ValueError(f"need step >= 0, got step={step}")
        check_workers(workers, len(self.parts))
        rows = workers.numpy()
        epochs, places = np.divmod(np.arange(step * share, (step + 1) * share), self._sizes[rows, None])  # [L, share] both
        result = np.empty_like(epochs)
        kept = epochs == self._epoch[rows, None]
        result[kept] = self._newest[(self._starts[rows, None] + places)[kept]]
        if not kept.all():
            result[~kept] = self._begin(rows, epochs, ~kept, places)
        return torch.from_numpy(result)

    def _begin(self, rows: Ints, epochs: Ints, new: NDArray[np.bool_], places: Ints) -> Ints:
        """Shuffle the epochs for which ``new`` ``[L, share]`` is true; the samples at the ``places`` of all true entries."""
        # A worker's epochs ascend along its row, so an epoch begins wherever it differs from the entry before.
        first = new.copy()
        first[:, 1:] &= ~new[:, :-1] | (epochs[:, 1:] != epochs[:, :-1])
        number = np.cumsum(first).reshape(first.shape) - 1  # of the epoch that an entry belongs to
        workers, shuffled_epochs = np.broadcast_to(rows[:, None], first.shape)[first], epochs[first]
        sizes = self._sizes[workers]
        starts = np.cumsum(sizes) - sizes
        samples = self._shuffled(workers, shuffled_epochs)
        self._keep(rows, epochs[:, -1], new[:, -1], samples, starts[number[:, -1]])
        result: Ints = samples[starts[number[new]] + places[new]]
        return result

    def _shuffled(self, workers: Ints, epochs: Ints) -> Ints:
        """The samples of each pair of worker and epoch ``[P]``, in its order, all in one line."""
        if len(workers) > MOST_EPOCHS:
            pieces = [slice(start, start + MOST_EPOCHS) for start in range(0, len(workers), MOST_EPOCHS)]
            return np.concatenate([self._shuffled(workers[piece], epochs[piece]) for piece in pieces])
        sizes = self._sizes[workers]
        pair = np.repeat(np.arange(len(workers)), sizes)
        samples = self._samples[ranges(self._starts[workers], sizes)]
        keys = random.key(self.seed, random.Stream.ORDER, torch.from_numpy(epochs[pair]), torch.from_numpy(samples)).numpy()
        by_pair_and_key = pair << (63 - EPOCH_BITS) | keys >> EPOCH_BITS
        result: Ints = samples[np.argsort(by_pair_and_key, kind="stable")]
        return result

    def _keep(self, rows: Ints, epochs: Ints, new: NDArray[np.bool_], samples: Ints, starts: Ints) -> None:
        """Remember the last epoch of each row that has just been shuffled; it begins at ``starts`` in ``samples``."""
        rows, sizes = rows[new], self._sizes[rows[new]]
        self._newest[ranges(self._starts[rows], sizes)] = samples[ranges(starts[new], sizes)]
        self._epoch[rows] = epochs[new]


def ranges(starts: Ints, sizes: Ints) -> Ints:
    """``start, start + 1, …``, ``size`` numbers for each pair, all in one line."""
    gaps = starts - (np.cumsum(sizes) - sizes)
    return np.repeat(gaps, sizes) + np.arange(sizes.sum())
