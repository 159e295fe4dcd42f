"""Many models as rows: their mean, how far apart they are, and what merging them into one is worth.

A merge is the plain mean, once, at the end: *On the Surprising Effectiveness of a Single Global Merging in Decentralized
Learning* (arXiv 2507.06542). It is one step of gossip on the complete graph. How well it works depends on the models' distance to
their mean, the consensus distance, and on whether they began alike: means of models that began apart are noise.

This file imports nothing of ours, so that strategies, simulations and ``disttrain merge`` can all use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Measured = Mapping[str, float]
"""What an objective says of a model on validation data: ``{"loss": …, "accuracy": …}``."""


def is_averaged(x: Tensor) -> bool:
    """Whether a mean of such numbers means anything: of counters and masks it does not."""
    return x.is_floating_point() or x.is_complex()


def merge(x: Tensor) -> Tensor:
    """The mean of rows ``[L, ...]``, summed in fp64 and cast back: ``[1, ...]``; of counters and masks, the first row.

    Equal rows give that row to the bit: what is summed are offsets from the first, and a row without any is left alone.
    """
    if not is_averaged(x):
        return x[:1].clone()
    first, offset = _first_and_offset(x)
    return torch.where(offset == 0, x[0], (first + offset).to(x.dtype))[None]  # adding 0.0 would turn -0.0 into 0.0


def consensus_distance(x: Tensor) -> float:
    """How far models ``x [L, ...]`` are apart: the mean over rows of ‖xᵢ − x̄‖², summed in fp64."""
    first, offset = _first_and_offset(x)
    return sum(float((row - first - offset).abs().square().sum()) for row in x) / len(x)


def _first_and_offset(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first row, and what the mean has beyond it, so that equal rows are at no distance at all; both in fp64."""
    first = x[0].to(torch.promote_types(x.dtype, torch.float64))
    offset = torch.zeros_like(first)
    for row in x:
        offset += (row - first) / len(x)
    return first, offset


@dataclass(frozen=True)
class Mergeability:
    """What models were worth one by one, and what their mean is worth.

    Args:
        local: what was measured of each model, in their order.
        merged: the same of their mean.
        distance: the models' consensus distance Ξ.
        norm: ‖x̄‖ of their mean.
    """

    local: Sequence[Measured]
    merged: Measured
    distance: float
    norm: float

    @property
    def local_mean(self) -> dict[str, float]:
        """The mean over the models of each thing measured."""
        return {name: sum(each[name] for each in self.local) / len(self.local) for name in self.merged}

    @property
    def relative_distance(self) -> float:
        """√Ξ ∕ ‖x̄‖: how far a model is from the mean, as a share of the mean's own length."""
        return math.sqrt(self.distance) / self.norm if self.norm else math.inf if self.distance else 0.0

    def sentence(self) -> str:
        """Whether merging was worth it, by the loss."""
        own, merged = self.local_mean["loss"], self.merged["loss"]
        if merged < own:
            return f"merging lowers the loss from {own:.4f}, the mean of the {len(self.local)} models', to {merged:.4f}"
        return f"merging does not help: the loss is {merged:.4f}, and {own:.4f} by the mean of the {len(self.local)} models'"

    def facts(self) -> dict[str, Any]:
        """All of it, for a JSON file."""
        return {
            "local_mean": self.local_mean,
            "merged": dict(self.merged),
            "consensus_distance": self.distance,
            "relative_consensus_distance": self.relative_distance,
        }
