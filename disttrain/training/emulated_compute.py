"""Emulated compute: forward and backward that take a given time and no processor, around a real exchange of real sizes.

More workers than cores cannot compute at their own speed, but they can sleep at it. Forward sleeps a third of the time and
backward two thirds (the usual ratio of their FLOPs), spread over the parameters in proportion to their size. Backward goes
through the parameters from the last to the first and yields a gradient for each when its time has come, so DDP's buckets
fill, and are exchanged, while the rest of backward still "computes": just as in a real one.

A gradient is its parameter times :data:`GRADIENT_RATIO`: finite, dense and cheap, but of no use for learning, and no more
compressible than the parameter is. The loss is NaN, which records show as null.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
from torch import Tensor, nn

from disttrain.objectives.base import Model, Objective

GRADIENT_RATIO = 1e-3
FORWARD_SHARE = 1 / 3
"""Forward's part of a step's time."""


class EmulatedCompute:
    """What stands in for a module's ``forward``.

    Args:
        module: whose trainable parameters (at least one) are "used", in their order.
        seconds: of one forward and backward together.
    """

    def __init__(self, module: nn.Module, seconds: float) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        numels = [p.numel() for p in self._parameters]
        forward, backward = FORWARD_SHARE * seconds / sum(numels), (1 - FORWARD_SHARE) * seconds / sum(numels)
        self._forward_ends = [forward * numel for numel in itertools.accumulate(numels)]
        self._backward_ends = [backward * numel for numel in itertools.accumulate(reversed(numels))][::-1]
        self._started = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Sleep through forward; returns a loss, scalar and NaN, whose backward sleeps too. The inputs are not looked at."""
        self._started = time.perf_counter()
        loss = torch.full((), float("nan"), device=self._parameters[0].device)
        for index, parameter in enumerate(self._parameters):
            loss = _Use.apply(loss, parameter, self, index)  # type: ignore[no-untyped-call]
        return loss

    def forward_through(self, index: int) -> None:
        """Sleep until forward has "used" parameter ``index``."""
        _sleep_until(self._started + self._forward_ends[index])

    def backward_through(self, index: int) -> None:
        """Sleep until backward has the gradient of parameter ``index``; the last parameter's starts its clock."""
        if index == len(self._parameters) - 1:
            self._started = time.perf_counter()
        _sleep_until(self._started + self._backward_ends[index])


class _Use(torch.autograd.Function):
    """A link of the chain: passes the loss on, and holds the place of one parameter's computation."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, parameter: Tensor, compute: EmulatedCompute, index: int) -> Tensor:  # type: ignore[override]
        compute.forward_through(index)
        ctx.save_for_backward(parameter)
        ctx.compute, ctx.index = compute, index
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        ctx.compute.backward_through(ctx.index)
        (parameter,) = ctx.saved_tensors
        return gradient, parameter * (GRADIENT_RATIO * gradient), None, None


class EmulatedObjective(Objective):
    """The objective of emulated compute: the model's output is the loss."""

    def __call__(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """The model's scalar; the targets are not looked at."""
        return model(inputs)


def emulate_compute(module: nn.Module, seconds: float) -> None:
    """Replace the forward pass of ``module`` by one that takes ``seconds``, together with its backward.

    Raises:
        ValueError: if the module has no trainable parameter.
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("the module has no trainable parameter")
    module.forward = EmulatedCompute(module, seconds)


def _sleep_until(moment: float) -> None:
    """By an absolute schedule: what one sleep is late by, the next is shorter by."""
    if (seconds := moment - time.perf_counter()) > 0:
        time.sleep(seconds)
