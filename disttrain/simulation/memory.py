"""How much memory a simulation needs, said before it starts; and how many workers' activations fit at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from disttrain.objectives import Objective
from disttrain.optim.closure import refuse_closures
from disttrain.parameters import FlatParameters
from disttrain.recording.progress import readable_bytes
from disttrain.strategies.base import Strategy
from disttrain.worlds import StackedWorld

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
    module: nn.Module,
    num_workers: int,
    build_strategy: Callable[[], Strategy],
    build_optimizer: Callable[[nn.Module], Optimizer],
    activation_bytes: int,
    chunk: int | None,
) -> MemoryForecast:
    """What a simulation will need; found out on copies of one worker's module.

    Args:
        module: of one worker; stays as it is.
        num_workers: N.
        build_strategy: makes the strategy, which begins with as few workers as it can here.
        build_optimizer: makes one worker's optimizer.
        activation_bytes: of one worker's batch, see :func:`activation_bytes`.
        chunk: workers at a time; None: as many as fit into :data:`CHUNK_BYTES`.
    """
    flat, strategy = FlatParameters(copy.deepcopy(module)), build_strategy()
    few = strategy.group_size
    strategy.begin(flat.x.repeat(few, 1), flat.layout, StackedWorld(few))
    per_worker = _bytes(flat.x)
    own = activation_bytes + per_worker  # a chunk's gradients exist once more before they are in place
    chunk = min(num_workers, chunk or max(1, CHUNK_BYTES // own))
    copies = {
        "parameters": 1.0,
        "gradients": 1.0,
        "optimizer state": _state_bytes(module, build_optimizer) / per_worker,
        "strategy state": sum(map(_bytes, strategy.local.values())) / few / per_worker,
        "buffers": sum(map(_bytes, module.buffers())) / per_worker,
        "being reduced": strategy.temporary_copies,
        "temporary": 1.0,
    }
    return MemoryForecast(num_workers, num_workers * per_worker, {k: n for k, n in copies.items() if n}, chunk, chunk * own)


def available_bytes() -> int | None:
    """Memory that this machine could give to a new process without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def activation_bytes(
    module: nn.Module, objective: Objective, batch: tuple[Tensor, Tensor], autocast: Callable[[], AbstractContextManager[Any]]
) -> int:
    """What one worker's forward pass keeps for backward, besides the parameters; the module may change, it is to be a copy."""
    # A parameter costs nothing more; of a storage that many views share, such as the inputs', only what is seen counts.
    kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), _bytes(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast():
        loss = objective(module, *batch)
    del loss
    return sum(kept.values())


def _state_bytes(module: nn.Module, build_optimizer: Callable[[nn.Module], Optimizer]) -> int:
    """Bytes of one worker's optimizer state, found out on a copy of the module."""
    module = copy.deepcopy(module)
    optimizer = build_optimizer(module)
    refuse_closures(optimizer)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return sum(_bytes(value) for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
