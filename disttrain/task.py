"""What is to be learned: the sizes on which data, model and objective must agree.

A data source says which task its samples pose; a model is built for a task, and an objective says whether it fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class TokenTask:
    """Predict the token after each token of a sequence.

    Args:
        vocabulary_size: every token is below it.
        sequence_length: tokens per sample.
    """

    vocabulary_size: int
    sequence_length: int

    @property
    def units_per_sample(self) -> int:
        """How many things of the corpus's unit one sample has: its tokens."""
        return self.sequence_length


@dataclass(frozen=True)
class ClassificationTask:
    """Tell to which class a sample belongs.

    Args:
        input_shape: of one sample, such as ``(channels, height, width)``.
        num_classes: labels are in ``range(num_classes)``.
    """

    input_shape: tuple[int, ...]
    num_classes: int

    @property
    def units_per_sample(self) -> int:
        """How many things of the corpus's unit one sample has: itself."""
        return 1


Task: TypeAlias = TokenTask | ClassificationTask
