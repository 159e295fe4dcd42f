"""One optimizer for all rows where it treats every entry alike, or one for each row.

SGD, AdamW and their kin are elementwise: stepping parameters ``[N, ...]`` is stepping N parameters, bit by bit, in one call.
What looks at a matrix as a whole (Muon, SOAP …) gets N instances, each over its worker's rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from disttrain.optim.closure import refuse_closures
from disttrain.simulation.replicas import Replicas

ELEMENTWISE = (
    optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Adamax, optim.NAdam, optim.RAdam,
    optim.Rprop, optim.ASGD,
)  # fmt: skip


class RowOptimizer:
    """Steps the rows of ``replicas.x``.

    Args:
        replicas: the workers.
        build: makes the optimizer of one worker's module; parameter groups are decided on a module, not on stacked rows.
        multiplier: learning rate as a share of the peak at a worker's update t = 0, 1, …; None leaves the rates alone.

    Raises:
        ValueError: if the optimizer cannot step without a closure, as LBFGS.

    Attributes:
        updates: int64 ``[N]``, how often each worker has moved.
        seconds: spent in steps.
        units: the parameters in the order of the optimizer's groups, in which torch adds up their norms.
    """

    def __init__(
        self,
        replicas: Replicas,
        build: Callable[[nn.Module], Optimizer],
        multiplier: Callable[[int], float] | None = None,
    ) -> None:
        self._replicas, self._build, self._multiplier = replicas, build, multiplier
        self.updates, self.seconds = torch.zeros(len(replicas), dtype=torch.int64), 0.0
        optimizer = build(replicas.template)
        refuse_closures(optimizer)
        by_name = {unit.name: unit for unit in replicas.layout.units}
        names = {id(p): name for name, p in replicas.template.named_parameters()}
        self.units = [by_name[names[id(p)]] for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._stacked: Optimizer | None = self._stack(optimizer) if _is_elementwise(optimizer) else None
        self._single: list[Optimizer] = [] if self._stacked else self._build_single()

    @property
    def first(self) -> Optimizer:
        """The optimizer of the first worker, or of all."""
        return self._stacked or self._single[0]

    @property
    def elementwise(self) -> bool:
        """Whether one optimizer steps all rows."""
        return self._stacked is not None

    def step(self, gradients: Tensor, moves: Tensor) -> None:
        """Step the workers ``moves``, bool ``[N]``, with ``gradients``, ``[N, d]`` or ``[1, d]`` for all."""
        start = time.perf_counter()
        if self._stacked is not None and not moves.all() and moves.any():
            self._split()  # from now on the workers' learning rates and step counts differ
        if self._stacked is not None:
            if moves.all():
                self._step_all(gradients)
        else:
            for worker in moves.nonzero().flatten().tolist():
                self._step_one(worker, gradients[worker % len(gradients)])
        self.updates += moves
        self.seconds += time.perf_counter() - start

    def _step_all(self, gradients: Tensor) -> None:
        assert self._stacked is not None
        everybodys = gradients.expand(len(self._replicas), -1)
        for unit, parameter in zip(self._replicas.layout.units, self._parameters, strict=True):
            parameter.grad = unit.of(everybodys)
        self._set_rates(self._stacked, int(self.updates[0]))
        self._stacked.step()

    def _step_one(self, worker: int, gradient: Tensor) -> None:
        parameters = dict(self._replicas.module(worker).named_parameters())
        own = [parameters[unit.name].grad for unit in self._replicas.layout.units]
        for unit in self._replicas.layout.units:
            parameters[unit.name].grad = unit.of(gradient).clone()  # one that averages may be everybody's
        self._set_rates(self._single[worker], int(self.updates[worker]))
        self._single[worker].step()
        for unit, grad in zip(self._replicas.layout.units, own, strict=True):
            parameters[unit.name].grad = grad  # where backward accumulates

    def _set_rates(self, optimizer: Optimizer, update: int) -> None:
        if self._multiplier is not None:
            for group, peak in zip(optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * self._multiplier(update)

    def _stack(self, optimizer: Optimizer) -> Optimizer:
        """Let an optimizer of the template hold all workers' parameters, in the groups that the template's are in."""
        names = {id(p): name for name, p in self._replicas.template.named_parameters()}
        stacked = {unit.name: nn.Parameter(unit.of(self._replicas.x)) for unit in self._replicas.layout.units}
        for group in optimizer.param_groups:
            group["params"] = [stacked[names[id(p)]] for p in group["params"] if p.requires_grad]
        self._parameters = list(stacked.values())
        return optimizer

    def _build_single(self) -> list[Optimizer]:
        return [self._build(self._replicas.module(worker)) for worker in range(len(self._replicas))]

    def _split(self) -> None:
        """Go on with an optimizer for each worker, each with its part of the state."""
        assert self._stacked is not None
        names = [unit.name for unit in self._replicas.layout.units]
        states = {name: self._stacked.state[p] for name, p in zip(names, self._parameters, strict=True)}
        self._single = self._build_single()
        for worker, optimizer in enumerate(self._single):
            parameters = dict(self._replicas.module(worker).named_parameters())
            for name, state in states.items():
                optimizer.state[parameters[name]] = {entry: _row(value, worker) for entry, value in state.items()}
        self._stacked = None


def _is_elementwise(optimizer: Optimizer) -> bool:
    """Fused kernels are left out: on a CPU they round a tensor's last entries in another way, so stacking would show."""
    return type(optimizer) in ELEMENTWISE and not any(group.get("fused") for group in optimizer.param_groups)


def _row(value: Any, worker: int) -> Any:
    """One worker's part of a stacked entry of state; counts are everybody's, and a copy from now on."""
    if not isinstance(value, Tensor):
        return value
    return value[worker] if value.ndim else value.clone()
