"""Uniformly random tokens, for benchmarks: nothing to load, nothing to learn."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain import random
from disttrain.data.base import Corpus, Dataset, TokenDataConfig, check_indices, data_sources
from disttrain.task import TokenTask


@data_sources.register
class RandomTokensConfig(TokenDataConfig):
    """Independent, uniformly distributed tokens: on new ones, no model has a loss below ln(vocabulary_size)."""

    name: Literal["random_tokens"] = "random_tokens"

    vocabulary_size: int = Field(256, ge=2, le=2**31)
    """Tokens are drawn from range(vocabulary_size)."""

    sequences: int = Field(4096, gt=0)
    """Training sequences per epoch."""

    validation_sequences: int = Field(256, gt=0)
    """Sequences to validate on."""

    def build(self, seed: int) -> Corpus:
        """Nothing is stored: sequences are computed from ``seed`` and their index when they are asked for."""
        everything = (self.vocabulary_size, self.sequence_length, self.sequences, self.validation_sequences, seed)
        floor = f"ln({self.vocabulary_size}) = {math.log(self.vocabulary_size):.4f} nats"
        return Corpus(
            train=self._dataset(seed, 0, self.sequences),
            validation=self._dataset(seed, self.sequences, self.validation_sequences),
            task=TokenTask(self.vocabulary_size, self.sequence_length),
            unit="token",
            description=f"{self.sequences:,} sequences of random tokens; on new ones, no loss is below {floor}",
            fingerprint=hashlib.sha256(repr(everything).encode()).hexdigest(),
        )

    def _dataset(self, seed: int, first: int, num_sequences: int) -> RandomTokens:
        return RandomTokens(seed, first, num_sequences, self.sequence_length, self.vocabulary_size)


@dataclass(frozen=True)
class RandomTokens(Dataset):
    """Sequences ``first`` to ``first + num_sequences - 1`` of the endless supply that belongs to a seed."""

    seed: int
    first: int
    num_sequences: int
    sequence_length: int
    vocabulary_size: int

    def __len__(self) -> int:
        return self.num_sequences

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each int64 ``[B, T]``; IndexError for an index that is no sequence's."""
        check_indices(indices, len(self))
        rows, columns = (self.first + indices)[:, None], torch.arange(self.sequence_length + 1)
        # The remainder favours small tokens by less than vocabulary_size / 2⁶³: not measurably.
        tokens = random.key(self.seed, random.Stream.DATA, rows, columns) % self.vocabulary_size
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
