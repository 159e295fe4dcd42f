"""Stochastic gradient descent with momentum, torch's own."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn
from torch.optim import SGD

from disttrain.optim.base import OptimizerConfig, optimizers
from disttrain.optim.groups import Decay, decayed_groups


@optimizers.register
class SGDConfig(OptimizerConfig):
    """torch.optim.SGD without dampening: v ← momentum·v + g, w ← w − lr·v."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    """The peak learning rate, which the schedule multiplies."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Memory of the velocity v; 0 keeps no state."""
    nesterov: bool = False
    """Step along g + momentum·v instead of v."""
    weight_decay: float = Field(0.0, ge=0)
    """Added to the gradient, times the weight: an L2 penalty, unlike AdamW's."""
    decay: Decay = "matrices"
    """What decays: matrices (also heads, convolutions and stacked experts), weights (embeddings too) or all."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true looks ahead along the momentum, and momentum=0 has none; change one of them")
        return self

    def build(self, module: nn.Module) -> SGD:
        """One torch group per role, so that a table of groups can be read."""
        return SGD(
            decayed_groups(self.groups(module), self.weight_decay, self.decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )
