"""Saved models into one module, one by one or as their mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import torch
from torch import Tensor, nn

from disttrain.config_sections import TrainingConfig
from disttrain.consensus import consensus_distance, is_averaged, merge
from disttrain.data import Dataset, EpochOrder
from disttrain.training.buffers import Policy, settle_buffers
from disttrain.worlds import StackedWorld

States = Sequence[Mapping[str, Tensor]]
"""Of each model, its parameters and buffers by name."""


@torch.no_grad()
def load(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The module, now with the parameters and buffers of ``state``; a buffer that is not in it stays as it is."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name in state:
            tensor.copy_(state[name])
    return module


@torch.no_grad()
def load_mean(module: nn.Module, states: States) -> tuple[float, float]:
    """Give the module the models' mean parameters, one after another; their consensus distance, and the norm of their mean."""
    distance = square = 0.0
    for name, parameter in module.named_parameters():
        rows = torch.stack([state[name] for state in states])
        parameter.copy_(merge(rows)[0])
        if is_averaged(rows):
            distance += consensus_distance(rows)
            square += float(parameter.to(torch.promote_types(parameter.dtype, torch.float64)).abs().square().sum())
    return distance, square**0.5


def settle(module: nn.Module, states: States, policy: Policy, batches: Iterator[Tensor]) -> None:
    """Give a module with the mean parameters its buffers, as at a run's end; one that no state holds stays as it is."""
    rows = {name: torch.stack([state.get(name, buffer) for state in states]) for name, buffer in module.named_buffers()}
    settle_buffers(policy, module, rows, StackedWorld(len(states)), batches)


def training_inputs(training: TrainingConfig, dataset: Dataset) -> Iterator[Tensor]:
    """Global batches of shuffled training samples: whatever the partition, running statistics are to be those of all data."""
    order = EpochOrder(len(dataset), training.seed)
    for step in count():
        yield dataset.batch(order.batch_indices(step, training.batch_size))[0]
