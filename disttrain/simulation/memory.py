"""How much memory a simulation needs, said before it starts; and how many workers' activations fit at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from disttrain.objectives import Objective
from disttrain.recording.progress import readable_bytes
from disttrain.simulation.replicas import Replicas
from disttrain.strategies.base import Strategy

CHUNK_BYTES = 32 << 20  # activations and gradients of a chunk: more gained nothing (docs/lab_notebook.md)


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of a simulation: copies of all workers' parameters, and what a chunk of workers needs at a time."""

    num_workers: int
    bytes_per_copy: int
    copies: dict[str, float]
    chunk: int
    chunk_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum, without data, Python and torch itself."""
        return round(self.bytes_per_copy * sum(self.copies.values())) + self.chunk_bytes

    def __str__(self) -> str:
        number, parts = sum(self.copies.values()), ", ".join(f"{each:.3g} {name}" for name, each in self.copies.items())
        chunk = f"{readable_bytes(self.chunk_bytes)} for {self.chunk:,} of {self.num_workers:,} workers' batches at a time"
        return (
            f"{readable_bytes(self.total_bytes)}: {number:.3g} copies of all parameters ({readable_bytes(self.bytes_per_copy)} "
            f"each: {parts}) and {chunk}"
        )


def forecast(
    replicas: Replicas,
    strategy: Strategy,
    build_optimizer: Callable[[nn.Module], Optimizer],
    activation_bytes: int,
    chunk: int | None,
) -> MemoryForecast:
    """What a simulation will need.

    Args:
        replicas: the workers.
        strategy: begun.
        build_optimizer: makes one worker's optimizer.
        activation_bytes: of one worker's batch, see :func:`activation_bytes`.
        chunk: workers at a time; None: as many as fit into :data:`CHUNK_BYTES`.
    """
    copy_bytes = replicas.x.numel() * replicas.x.element_size()
    per_worker = copy_bytes // len(replicas)
    own = activation_bytes + per_worker  # a chunk's gradients exist once more before they are in place
    chunk = chunk or max(1, min(len(replicas), CHUNK_BYTES // own))
    held = sum(t.numel() * t.element_size() for t in (*strategy.shared.values(), *strategy.local.values()))
    copies = {
        "parameters": 1.0,
        "gradients": 1.0,
        "optimizer state": _state_bytes(replicas.template, build_optimizer) / per_worker,
        "strategy state": held / copy_bytes,
        "being reduced": 1.0 if strategy.reduces_gradients else 0.0,
        "temporary": 1.0,
    }
    return MemoryForecast(
        len(replicas), copy_bytes, {k: n for k, n in copies.items() if n}, chunk, min(chunk, len(replicas)) * own
    )


def activation_bytes(
    module: nn.Module, objective: Objective, batch: tuple[Tensor, Tensor], autocast: Callable[[], AbstractContextManager[Any]]
) -> int:
    """What one worker's forward pass keeps for backward, besides the parameters; the module's buffers may change."""
    # A parameter costs nothing more; of a storage that many views share, such as the inputs', only what is seen counts.
    kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast():
        loss = objective(module, *batch)
    del loss
    return sum(kept.values())


def _state_bytes(module: nn.Module, build_optimizer: Callable[[nn.Module], Optimizer]) -> int:
    """Bytes of one worker's optimizer state, found out on a copy of the module."""
    module = copy.deepcopy(module)
    optimizer = build_optimizer(module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in values)
