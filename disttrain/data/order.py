"""Which sequences a step trains on: a pure function of the step, so that resuming needs the step and nothing else.

The sequences of epoch 0, in that epoch's order, then those of epoch 1, and so on, form one endless line. Step s of
global batch B takes its positions ``[s·B, (s+1)·B)``, whatever the number of workers; `share` then hands each worker
its part. So two workers see in a step what one worker would, and a batch may straddle epochs or hold several of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from disttrain import random


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
        n, start, end = self.num_sequences, step * batch_size, (step + 1) * batch_size
        epochs = range(start // n, (end - 1) // n + 1)
        self._recent = {epoch: self._epoch(epoch) for epoch in epochs}
        return torch.cat([order[max(start - epoch * n, 0) : end - epoch * n] for epoch, order in self._recent.items()])

    def _epoch(self, epoch: int) -> Tensor:
        if epoch in self._recent:
            return self._recent[epoch]
        return permutation(self.num_sequences, self.seed, epoch) if self.shuffle else torch.arange(self.num_sequences)


def share(indices: Tensor, worker: int, world: int) -> Tensor:
    """One worker's contiguous part of a global batch: int64 ``[B]`` to ``[B / world]``.

    Raises:
        ValueError: if the batch does not divide evenly, or there is no such worker.
    """
    if not 0 <= worker < world:
        raise ValueError(f"worker must be in [0, {world}), got {worker}")
    if len(indices) % world:
        raise ValueError(f"training.batch_size={len(indices)} cannot be shared equally by {world} workers")
    return indices.reshape(world, -1)[worker]


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
