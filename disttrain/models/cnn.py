"""A small convolutional network for images: LeNet's plan (LeCun et al., 1998) with today's parts.

Stage i is ``max_pool_2(relu(norm(conv_3x3(x))))``, which keeps the size in the convolution and halves it in the pool; the head
is linear. Weights are drawn as torch draws them. Nothing is changed in place, so that many can be stacked under
``torch.func.vmap``; BatchNorm's running statistics are the exception, for which group norm is the way out.
"""

from __future__ import annotations

from collections import OrderedDict
from math import gcd
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from disttrain.component import UserError
from disttrain.models.base import ModelConfig, Size, classification_task, models
from disttrain.task import ClassificationTask, Task

MOST_GROUPS = 8


@models.register
class CnnConfig(ModelConfig):
    """A small convolutional network for images with classes; on digits it has 1,898 parameters."""

    name: Literal["cnn"] = "cnn"
    channels: list[Size] = Field(default=[8, 16], min_length=1)
    """Channels of each stage; every stage halves height and width."""
    norm: Literal["none", "group", "batch"] = "none"
    """Put before each ReLU. group: in 8 groups of channels, or the most that divide them. batch: its statistics are of each
    worker's own share of the batch."""

    def build(self, task: Task) -> nn.Module:
        """The module, float32 ``[batch, channels, height, width]`` to logits ``[batch, num_classes]``.

        Raises:
            UserError: if the data's samples are no images, or too small to be halved so often.
        """
        data = classification_task(self.name, task)
        shapes = self._shapes(data)
        layers = OrderedDict[str, nn.Module]()
        for number, (inputs, outputs) in enumerate(zip(shapes, self.channels, strict=False)):
            layers[f"stage{number}"] = self._stage(inputs[0], outputs)
        layers["flatten"] = nn.Flatten()
        layers["head"] = nn.Linear(torch.Size(shapes[-1]).numel(), data.num_classes)
        return nn.Sequential(layers)

    def flops_per_token(self, module: nn.Module, task: Task) -> float:
        """2 + 4 for every place at which a weight of a convolution is used, and for every weight of the head."""
        data = classification_task(self.name, task)
        shapes = self._shapes(data)
        stages = zip(shapes, self.channels, strict=False)
        products = sum(9 * shape[0] * outputs * shape[1] * shape[2] for shape, outputs in stages)
        return 6.0 * (products + torch.Size(shapes[-1]).numel() * data.num_classes)

    def _shapes(self, data: ClassificationTask) -> list[tuple[int, int, int]]:
        """Channels, height and width of what enters each stage, and of what enters the head."""
        if len(data.input_shape) != 3:
            raise UserError(
                f"model.name=cnn needs images [channels, height, width], and the data has samples of shape "
                f"{list(data.input_shape)}: use model.name=mlp"
            )
        _, height, width = data.input_shape
        deepest = len(self.channels)
        if min(height, width) >> deepest == 0:
            raise UserError(
                f"model.channels={self.channels} halves images {deepest} times, and the data's are {height} × {width}: "
                "give fewer channels"
            )
        through = [data.input_shape[0], *self.channels]
        return [(channels, height >> stage, width >> stage) for stage, channels in enumerate(through)]

    def _stage(self, inputs: int, outputs: int) -> nn.Module:
        parts: list[tuple[str, nn.Module]] = [("conv", nn.Conv2d(inputs, outputs, 3, padding=1))]
        if self.norm == "group":
            parts.append(("norm", nn.GroupNorm(gcd(MOST_GROUPS, outputs), outputs)))
        elif self.norm == "batch":
            parts.append(("norm", nn.BatchNorm2d(outputs)))
        return nn.Sequential(OrderedDict([*parts, ("activation", nn.ReLU()), ("pool", nn.MaxPool2d(2))]))
