"""Which samples a step trains on: a pure function of the step, so that resuming needs the step and nothing else.

Where nobody owns samples, those of epoch 0, in that epoch's order, then those of epoch 1, and so on, form one endless line.
Step s of global batch B takes its positions ``[s·B, (s+1)·B)``, whatever the number of workers; each worker then gets its share.
So two workers see in a step what one worker would, and a batch may straddle epochs or hold several of them. Where each worker
has samples of its own, `partitioned_order.py` has an endless line for each.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from disttrain import random


class Order(Protocol):
    """Tells which samples each worker trains on in each step."""

    report: str
    """What the partition looks like, in a sentence for the start of the run; empty where nobody owns samples."""

    def batch(self, step: int, batch_size: int, workers: Tensor) -> Tensor:
        """The samples of ``step`` (from 0) for some of the workers: int64 ``[L, batch_size / size]``.

        Args:
            step: any, in any order: the result depends on nothing else.
            batch_size: of all ``size`` workers together.
            workers: int64 ``[L]``, such as ``world.ids``.

        Raises:
            ValueError: if the batch cannot be shared equally, there is no such worker, or the step is negative.
        """
        ...


def permutation(num_sequences: int, seed: int, epoch: int) -> Tensor:
    """A shuffle of ``range(num_sequences)``, int64 ``[num_sequences]``; each epoch has its own.

    Indices are sorted by their keys: unlike a library's shuffle, it cannot change with the library's version.
    """
    keys = random.key(seed, random.Stream.ORDER, epoch, torch.arange(num_sequences))
    return torch.argsort(keys, stable=True)


class EpochOrder:
    """Every sequence once per epoch, in an order that the seed and the epoch decide.

    Args:
        num_sequences: the sequences of one epoch.
        seed: the run's seed.
        shuffle: whether to permute each epoch, rather than go by index.

    Raises:
        ValueError: if there is no sequence.
    """

    def __init__(self, num_sequences: int, seed: int, shuffle: bool = True) -> None:
        if num_sequences < 1:
            raise ValueError(f"an epoch needs at least 1 sequence, got num_sequences={num_sequences}")
        self.num_sequences, self.seed, self.shuffle = num_sequences, seed, shuffle
        self._recent: dict[int, Tensor] = {}  # the epochs of the last batch: a cache, which no result depends on

    def batch_indices(self, step: int, batch_size: int) -> Tensor:
        """The sequences of the global batch of ``step`` (from 0): int64 ``[batch_size]``."""
        if step < 0 or batch_size < 1:
            raise ValueError(f"need step >= 0 and batch_size >= 1, got step={step}, batch_size={batch_size}")
        return self.line(step * batch_size, (step + 1) * batch_size)

    def line(self, start: int, end: int) -> Tensor:
        """The sequences at places ``[start, end)`` of the endless line of epochs: int64 ``[end - start]``, not none."""
        n = self.num_sequences
        epochs = range(start // n, (end - 1) // n + 1)
        self._recent = {epoch: self._epoch(epoch) for epoch in epochs}
        return torch.cat([order[max(start - epoch * n, 0) : end - epoch * n] for epoch, order in self._recent.items()])

    def _epoch(self, epoch: int) -> Tensor:
        if epoch in self._recent:
            return self._recent[epoch]
        return permutation(self.num_sequences, self.seed, epoch) if self.shuffle else torch.arange(self.num_sequences)


class GlobalOrder:
    """Nobody owns samples: the batches of `EpochOrder`, dealt out to the workers.

    Args:
        num_samples: the samples of one epoch.
        size: how many workers there are.
        seed: the run's seed.
        shuffle: whether to permute each epoch, rather than go by index.

    Raises:
        ValueError: if there is no sample.
    """

    def __init__(self, num_samples: int, size: int, seed: int, shuffle: bool = True) -> None:
        self.size, self.report, self._epochs = size, "", EpochOrder(num_samples, seed, shuffle)

    def batch(self, step: int, batch_size: int, workers: Tensor) -> Tensor:
        """Each worker's contiguous part of the global batch; see `Order`."""
        share_size(batch_size, self.size)
        check_workers(workers, self.size)
        return self._epochs.batch_indices(step, batch_size).reshape(self.size, -1)[workers]


def share(indices: Tensor, worker: int, world: int) -> Tensor:
    """One worker's contiguous part of a global batch: int64 ``[B]`` to ``[B / world]``.

    Raises:
        ValueError: if the batch does not divide evenly, or there is no such worker.
    """
    if not 0 <= worker < world:
        raise ValueError(f"worker must be in [0, {world}), got {worker}")
    share_size(len(indices), world)
    return indices.reshape(world, -1)[worker]


def share_size(batch_size: int, world: int) -> int:
    """How many of a global batch's samples each worker gets; ValueError if it cannot be shared equally."""
    if batch_size < 1 or batch_size % world:
        raise ValueError(f"training.batch_size={batch_size} cannot be shared equally by {world} workers")
    return batch_size // world


def check_workers(workers: Tensor, world: int) -> None:
    """Raise ValueError unless all are in ``range(world)``: a negative one would count from the end."""
    wrong = workers[(workers < 0) | (workers >= world)]
    if wrong.numel():
        raise ValueError(f"workers must be in [0, {world}), got {wrong.tolist()}")


def microbatches(indices: Tensor, count: int) -> tuple[Tensor, ...]:
    """One worker's batch cut into ``count`` equal parts, each int64 ``[B / count]``, whose gradients are accumulated.

    Raises:
        ValueError: if the batch does not divide evenly.
    """
    if count < 1 or len(indices) % count:
        raise ValueError(
            f"a worker's batch of {len(indices)} cannot be cut into training.gradient_accumulation={count} equal parts"
        )
    return indices.chunk(count)
