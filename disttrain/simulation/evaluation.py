"""What a simulation sees and a real run cannot without talking: every worker's model, their mean, how far apart they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from disttrain.data import Dataset, EpochOrder
from disttrain.objectives import Objective
from disttrain.simulation.replicas import Replicas
from disttrain.strategies.attach import training_mode
from disttrain.worlds.rank_order import rank_ordered_mean

SAMPLED_WORKERS = 8
"""How many workers' models are validated one by one, evenly spread."""


@dataclass(frozen=True)
class Validation:
    """The validation batches that `disttrain train` would use, and how to measure a model on them."""

    dataset: Dataset
    objective: Objective
    batch_size: int
    batches: int
    autocast: Callable[[], AbstractContextManager[Any]]

    @torch.no_grad()
    def measure(self, module: nn.Module) -> dict[str, float]:
        """The mean over all batches of what the objective evaluates, such as ``{"loss": …}``."""
        order = EpochOrder(len(self.dataset), seed=0, shuffle=False)
        totals: dict[str, float] = {}
        with training_mode(module, False), self.autocast():
            for step in range(self.batches):
                batch = self.dataset.batch(order.batch_indices(step, self.batch_size))
                measured = self.objective.evaluate(module, *batch)
                totals = {name: totals.get(name, 0.0) + float(value) for name, value in measured.items()}
        return {name: total / self.batches for name, total in totals.items()}


def validate(replicas: Replicas, exported: Tensor, validation: Validation) -> tuple[dict[str, float], dict[int, float]]:
    """Measure what the strategy exports ``[1, d]``, the mean of all models, and a sample of single ones.

    Returns:
        Numbers for the step's record, and the sampled workers' losses.
    """
    measured = validation.measure(replicas.load(exported))
    record = {f"validation_{name}": value for name, value in measured.items()}
    mean = validation.measure(replicas.load(rank_ordered_mean(replicas.x)[None]))
    record |= {f"mean_model_{name}": value for name, value in mean.items()}
    sample = range(0, len(replicas), -(-len(replicas) // SAMPLED_WORKERS))
    losses = {r: validation.measure(replicas.load(replicas.x[r : r + 1], r))["loss"] for r in sample}
    values = torch.tensor(list(losses.values()), dtype=torch.float64)
    record |= {
        "worker_validation_loss_mean": float(values.mean()),
        "worker_validation_loss_min": float(values.min()),
        "worker_validation_loss_max": float(values.max()),
    }
    return record, losses


def consensus_distance(x: Tensor) -> float:
    """How far models ``x [N, d]`` are apart: the mean over workers of ‖xᵢ − x̄‖², summed in fp64."""
    first, offset = x[0].double(), torch.zeros(x.shape[1], dtype=torch.float64)
    for row in x:
        offset += (row - first) / len(x)  # from one of them, so that equal rows are at no distance at all
    return sum(float((row - first - offset).square().sum()) for row in x) / len(x)
