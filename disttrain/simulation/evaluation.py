"""What a simulation sees and a real run cannot without talking: every worker's model, their mean, how far apart they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from disttrain.config_sections import TrainingConfig
from disttrain.data import Dataset, EpochOrder
from disttrain.objectives import Objective
from disttrain.simulation.replicas import Replicas
from disttrain.strategies.attach import training_mode
from disttrain.worlds.rank_order import rank_ordered_mean

SAMPLED_WORKERS = 32
"""How many workers' models are validated one by one, evenly spread."""


def cpu_autocast(training: TrainingConfig) -> AbstractContextManager[Any]:
    """What forward passes on the CPU run in."""
    return nullcontext() if training.precision == "fp32" else torch.autocast("cpu", torch.bfloat16)


@dataclass(frozen=True)
class Validation:
    """The validation batches that `disttrain train` would use, and how to measure a model on them."""

    dataset: Dataset
    objective: Objective
    batch_size: int
    batches: int
    autocast: Callable[[], AbstractContextManager[Any]]

    @classmethod
    def of(cls, training: TrainingConfig, dataset: Dataset, objective: Objective) -> Validation:
        """On the CPU, of as many samples as the config says, or as there are."""
        batch_size = min(training.batch_size, len(dataset))
        batches = min(training.validation_batches, len(dataset) // batch_size)
        return cls(dataset, objective, batch_size, batches, lambda: cpu_autocast(training))

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
    single = {r: validation.measure(replicas.load(replicas.x[r : r + 1], r)) for r in sample}
    for name in measured:
        values = torch.tensor([each[name] for each in single.values()], dtype=torch.float64)
        record |= {
            f"worker_validation_{name}_mean": float(values.mean()),
            f"worker_validation_{name}_min": float(values.min()),
            f"worker_validation_{name}_max": float(values.max()),
        }
    return record, {r: each["loss"] for r, each in single.items()}
