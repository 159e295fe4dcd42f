"""The seam of an objective: a model and a batch in, the mean loss out."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from disttrain.component import ComponentConfig, Registry


class Objective(Protocol):
    """Maps a model and a batch to the mean loss over the batch, a scalar in fp32."""

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor: ...  # noqa: D102


class ObjectiveConfig(ComponentConfig):
    """Base of all objectives' configs."""

    def build(self) -> Objective:
        """The objective itself."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")


objectives: Registry[ObjectiveConfig] = Registry("objective", default="next_token")
