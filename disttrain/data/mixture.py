"""Several data sets as one: mixed by weights, or joined.

Mixed, in every :data:`BLOCK` samples each part has its exact share, at places that the seed decides; a part's own samples come in
its own shuffled epochs. So a small part with a large weight is repeated more often, and nothing is ever left out. Which sample
stands where is a pure function of its place, so resuming needs the step and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from disttrain import random
from disttrain.data.base import Dataset, check_indices
from disttrain.data.order import EpochOrder, check_workers, permutation, share_size

BLOCK = 10_000
"""Samples in which weights are kept exactly; it divides by most weights that people write."""
DERIVED = 2**40
"""Keeps the seeds of parts apart from an epoch's keys."""


@dataclass(frozen=True, eq=False)
class JoinedDataset(Dataset):
    """The samples of all parts, one part after another.

    Args:
        parts: of samples of one shape.
        sources: int64 ``[n]``; see `Dataset`.
        source_names: what they are called.
        weights: in which parts are to be mixed, of the sum 1; None: every sample counts alike.
    """

    parts: tuple[Dataset, ...]
    sources: Tensor | None = None
    source_names: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    _starts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", torch.tensor([0, *map(len, self.parts)]).cumsum(0))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The samples at int64 ``[B]``, in that order."""
        check_indices(indices, len(self))
        part = torch.searchsorted(self._starts, indices, right=True) - 1
        pieces, places = [], []
        for number in part.unique().tolist():
            here = (part == number).nonzero()[:, 0]
            pieces.append(self.parts[number].batch(indices[here] - self._starts[number]))
            places.append(here)
        back = torch.cat(places).argsort()
        return torch.cat([inputs for inputs, _ in pieces])[back], torch.cat([targets for _, targets in pieces])[back]


def shares(weights: Sequence[float]) -> list[int]:
    """How many of :data:`BLOCK` samples each part has: as its weight says, the largest remainders rounded up.

    Raises:
        ValueError: if a weight is so small that its part would have none.
    """
    exact = [weight / sum(weights) * BLOCK for weight in weights]
    counts = [int(each) for each in exact]
    for number in sorted(range(len(exact)), key=lambda k: counts[k] - exact[k])[: BLOCK - sum(counts)]:
        counts[number] += 1
    if 0 in counts:
        raise ValueError(
            f"weight {weights[counts.index(0)]:g} of {sum(weights):g} is less than 1 in {BLOCK:,}: leave that part out"
        )
    return counts


class MixedOrder:
    """An order (see `Order`) in which parts of a joined data set have given shares.

    Args:
        sizes: samples of each part.
        weights: of each part, more than 0.
        size: how many workers there are.
        seed: the run's seed.

    Raises:
        ValueError: if a weight is too small.
    """

    report = ""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], size: int, seed: int) -> None:
        self.size, self._seed, counts = size, seed, torch.tensor(shares(weights))
        self._counts, self._starts = counts, torch.tensor([0, *sizes]).cumsum(0)
        self._parts = torch.repeat_interleave(torch.arange(len(counts)), counts)
        seeds = random.key(seed, random.Stream.ORDER, DERIVED, torch.arange(len(counts))).tolist()
        self._orders = [EpochOrder(samples, own) for samples, own in zip(sizes, seeds, strict=True)]
        self._recent: dict[int, tuple[Tensor, Tensor]] = {}  # the blocks of the last batch: a cache, no result depends on it

    def batch(self, step: int, batch_size: int, workers: Tensor) -> Tensor:
        """Each worker's contiguous part of the global batch; see `Order`."""
        share_size(batch_size, self.size)
        check_workers(workers, self.size)
        if step < 0:
            raise ValueError(f"need step >= 0, got step={step}")
        return self._batch(step * batch_size, (step + 1) * batch_size).reshape(self.size, -1)[workers]

    def _batch(self, start: int, end: int) -> Tensor:
        """The samples at places ``[start, end)`` of the endless line."""
        blocks = range(start // BLOCK, (end - 1) // BLOCK + 1)
        self._recent = {block: self._recent.get(block) or self._block(block) for block in blocks}
        part, rank = (
            torch.cat(each)[start - blocks[0] * BLOCK :][: end - start] for each in zip(*self._recent.values(), strict=True)
        )
        result = torch.empty(end - start, dtype=torch.int64)
        for number in part.unique().tolist():
            here = part == number
            ranks = rank[here]  # ascending, without gaps: those of one part in the order of the line
            line = self._orders[number].line(int(ranks[0]), int(ranks[-1]) + 1)
            result[here] = self._starts[number] + line
        return result

    def _block(self, block: int) -> tuple[Tensor, Tensor]:
        """Of each place of a block, the part, and how many of that part's samples stand before it in the whole line."""
        part = self._parts[permutation(BLOCK, self._seed, block)]
        before = torch.nn.functional.one_hot(part, len(self._counts)).cumsum(0).gather(1, part[:, None])[:, 0] - 1
        return part, block * self._counts[part] + before
