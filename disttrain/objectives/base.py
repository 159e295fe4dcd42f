"""The seam of an objective: a model and a batch in, the mean loss out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from disttrain.component import ComponentConfig, Registry
from disttrain.task import Task

Model: TypeAlias = Callable[[Tensor], Tensor]
"""Inputs to outputs: an ``nn.Module``, or a call of one with parameters from elsewhere."""


class Objective:
    """Maps a model and a batch to the mean loss over the batch, a scalar in fp32.

    It must run inside ``torch.func.vmap(torch.func.grad(...))`` too, where a simulator has many models at once: shapes may
    decide what is computed, values must not.
    """

    def __call__(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss, to be differentiated."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__()")

    def evaluate(self, model: Model, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What is worth knowing of a validation batch, scalars of which a mean over batches makes sense; one forward pass.

        By default the loss alone, as ``"loss"``, which must not be missing.
        """
        return {"loss": self(model, inputs, targets)}

    def check(self, task: Task) -> None:
        """Raise UserError, naming an objective that can be used, unless this one fits the task; by default it fits any."""


class ObjectiveConfig(ComponentConfig):
    """Base of all objectives' configs."""

    def build(self) -> Objective:
        """The objective itself."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")


objectives: Registry[ObjectiveConfig] = Registry("objective", default="next_token")
