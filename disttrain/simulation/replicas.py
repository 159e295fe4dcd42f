"""N replicas of a module as rows: parameters in one tensor ``[N, d]``, buffers stacked, modules over single rows on demand."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from disttrain.parameters import FlatParameters, Layout


class Replicas:
    """N workers' copies of one module.

    Args:
        module: what all start from; it stays usable by itself, and is where results are put for evaluation.
        num_workers: N.
        alignment: of parameters in a row; see :class:`~disttrain.parameters.FlatParameters`.

    Attributes:
        template: the module, its parameters in a vector of its own.
        x: ``[N, d]``, the live parameters.
        g: ``[N, d]``, room for gradients.
        buffers: the workers' buffers by name, each ``[N, ...]``.

    Raises:
        ValueError: if the module's trainable parameters cannot form one vector.
    """

    def __init__(self, module: nn.Module, num_workers: int, alignment: int | None = None) -> None:
        self.template, self.num_workers = module, num_workers
        self._pristine = copy.deepcopy(module)  # a module that has been run may hold what cannot be copied
        self._modules: dict[int, nn.Module] = {}
        self._flat = FlatParameters(module, alignment)
        self.layout: Layout = self._flat.layout
        self.x = self._flat.x.repeat(num_workers, 1)
        self.g = torch.zeros_like(self.x)
        self.buffers = {name: b.repeat(num_workers, *[1] * b.ndim) for name, b in module.named_buffers()}

    def __len__(self) -> int:
        return self.num_workers

    def module(self, worker: int) -> nn.Module:
        """A module whose parameters, gradients and buffers are views of one worker's rows; frozen parameters are shared."""
        if worker not in self._modules:
            self._modules[worker] = self._build_module(worker)
        return self._modules[worker]

    def fresh_module(self) -> nn.Module:
        """A module of its own, as all were at the start."""
        return copy.deepcopy(self._pristine)

    def _build_module(self, worker: int) -> nn.Module:
        module = self.fresh_module()
        for parameter, shared in zip(module.parameters(), self.template.parameters(), strict=True):
            parameter.data = shared.data
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        for unit in self.layout.units:
            parameters[unit.name].data = unit.of(self.x[worker])
            parameters[unit.name].grad = unit.of(self.g[worker])
        for name, stacked in self.buffers.items():
            buffers[name].data = stacked[worker]
        return module

    def load(self, parameters: Tensor, worker: int = 0) -> nn.Module:
        """The template, now with ``parameters [1, d]`` and the buffers of ``worker``."""
        self._flat.x.copy_(parameters)
        for name, buffer in self.template.named_buffers():
            buffer.copy_(self.buffers[name][worker])
        return self.template
