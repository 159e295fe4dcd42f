"""A classification task for co2.py that a small model cannot finish: random points, whose classes a random network draws."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from disttrain.data.base import Corpus, DataConfig, LabelledDataset, data_sources, fingerprint
from disttrain.task import ClassificationTask

ENTRIES, HIDDEN, CLASSES = 16, 32, 10
TRAINING, VALIDATION = 60_000, 6_000
SHARPNESS = 4.0
"""The standard deviation of the teacher's logits; with it no model can have a loss below 0.72 nats."""


@data_sources.register
class TeacherConfig(DataConfig):
    """Points of a normal distribution in 16 dimensions, each with one of 10 classes, drawn as a random network's softmax says."""

    name: Literal["teacher"] = "teacher"
    has_labels: ClassVar[bool] = True

    def build(self, seed: int) -> Corpus:
        """Draw the points; the same for every seed."""
        inputs, labels = draw()
        train = LabelledDataset(inputs[:TRAINING], labels[:TRAINING])
        validation = LabelledDataset(inputs[TRAINING:], labels[TRAINING:])
        return Corpus(
            train=train,
            validation=validation,
            task=ClassificationTask(input_shape=(ENTRIES,), num_classes=CLASSES),
            unit="sample",
            description=f"{len(train):,} points with a random network's classes",
            fingerprint=fingerprint(inputs.numpy(), labels.numpy()),
        )


def draw() -> tuple[Tensor, Tensor]:
    """All points, float32 ``[66000, 16]``, and their classes, int64 ``[66000]``."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(TRAINING + VALIDATION, ENTRIES, generator=generator)
    hidden = torch.tanh(inputs @ torch.randn(ENTRIES, HIDDEN, generator=generator) * (2 / ENTRIES**0.5))
    logits = hidden @ torch.randn(HIDDEN, CLASSES, generator=generator)
    chances = torch.softmax(SHARPNESS * logits / logits.std(), dim=1)
    return inputs, torch.multinomial(chances, 1, generator=generator)[:, 0]
