"""Handwritten digits: 1,797 images of 8 × 8 pixels in 10 classes, which come with scikit-learn.

The smallest real classification task: it needs no download, and a run takes seconds. The images are the test part of
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI Machine Learning Repository, 1998).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from disttrain.data.base import Corpus, DataConfig, LabelledDataset, data_sources, fingerprint
from disttrain.data.documents import place
from disttrain.task import ClassificationTask

DARKEST = 16.0


@data_sources.register
class DigitsConfig(DataConfig):
    """Images of handwritten digits, 8 × 8, in 10 classes; pixels are scaled to [0, 1]."""

    name: Literal["digits"] = "digits"
    has_labels: ClassVar[bool] = True

    validation_ratio: float = Field(0.2, gt=0, lt=1)
    """Share of the images to validate on, chosen by a hash of their numbers."""

    def build(self, seed: int) -> Corpus:
        """Load the images; the same for every seed."""
        inputs, labels = _load()
        held_out = _held_out(len(labels), self.validation_ratio)
        train = LabelledDataset(inputs[~held_out], labels[~held_out])
        validation = LabelledDataset(inputs[held_out], labels[held_out])
        return Corpus(
            train=train,
            validation=validation,
            task=ClassificationTask(input_shape=tuple(inputs.shape[1:]), num_classes=10),
            unit="sample",
            description=f"handwritten digits: {len(train):,} images to train on, {len(validation):,} to validate on",
            fingerprint=fingerprint(*(each.numpy() for side in (train, validation) for each in (side.inputs, side.labels))),
        )


def _load() -> tuple[Tensor, Tensor]:
    """All images, float32 ``[1797, 1, 8, 8]``, and their classes, int64 ``[1797]``."""
    from sklearn.datasets import load_digits  # takes a second to import, which other data do without

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / DARKEST)
    return images[:, None], torch.from_numpy(digits.target.astype(np.int64))


def _held_out(num_images: int, validation_ratio: float) -> Tensor:
    """Which images to validate on, bool ``[num_images]``; at least one, and never all."""
    places = torch.tensor([place(str(number)) for number in range(num_images)], dtype=torch.float64)
    count = min(max(int((places < validation_ratio).sum()), 1), num_images - 1)
    held_out = torch.zeros(num_images, dtype=torch.bool)
    held_out[places.argsort()[:count]] = True
    return held_out
