"""A multilayer perceptron: samples of any shape, flattened, through fully connected layers.

Hidden layer i is ``activation(norm(W_i x + b_i))``, then dropout; the head is linear. Weights are drawn as torch's
``nn.Linear`` draws them. Nothing is changed in place, so that many of them can be stacked under ``torch.func.vmap``.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from math import prod
from typing import Literal

from pydantic import Field
from torch import nn

from disttrain.models.base import ModelConfig, Size, classification_task, models
from disttrain.task import Task

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


@models.register
class MlpConfig(ModelConfig):
    """A multilayer perceptron for samples with classes; on digits it has 4,810 parameters."""

    name: Literal["mlp"] = "mlp"
    hidden: list[Size] = Field(default=[64])
    """Width of each hidden layer; an empty list leaves multinomial logistic regression."""
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    """What makes the hidden layers nonlinear."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of each hidden layer's outputs that is zeroed in training."""
    norm: Literal["none", "layer", "batch"] = "none"
    """Put before each activation. batch: its statistics are of each worker's own share of the batch."""

    def build(self, task: Task) -> nn.Module:
        """The module, float32 ``[batch, *input_shape]`` to logits ``[batch, num_classes]``."""
        data = classification_task(self.name, task)
        widths = [prod(data.input_shape), *self.hidden]
        layers = OrderedDict[str, nn.Module](flatten=nn.Flatten())
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            layers[f"hidden{number}"] = self._layer(inputs, outputs)
        layers["head"] = nn.Linear(widths[-1], data.num_classes)
        return nn.Sequential(layers)

    def _layer(self, inputs: int, outputs: int) -> nn.Module:
        parts: list[tuple[str, nn.Module]] = [("linear", nn.Linear(inputs, outputs))]
        if self.norm != "none":
            parts.append(("norm", NORMS[self.norm](outputs)))
        parts.append(("activation", ACTIVATIONS[self.activation]()))
        if self.dropout:
            parts.append(("dropout", nn.Dropout(self.dropout)))
        return nn.Sequential(OrderedDict(parts))
