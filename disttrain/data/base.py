"""The seam of the data: a corpus is two sets of samples, and a source's config knows how to load one.

Every worker loads the same corpus; which samples it trains on is decided by `partitions/`, and when, by `order.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from disttrain.component import ComponentConfig, Registry
from disttrain.task import Task

Tokens: TypeAlias = NDArray[np.unsignedinteger[Any]]
Unit: TypeAlias = Literal["byte", "token", "sample"]


class Dataset:
    """Samples of one shape, found by their index; and what a partition may divide them by, where it is known."""

    labels: Tensor | None = None
    """int64 ``[n]``: the class of each sample."""
    sources: Tensor | None = None
    """int64 ``[n]``: where each sample comes from, a position in ``source_names``."""
    source_names: tuple[str, ...] = ()
    """What the sources are called."""

    def __len__(self) -> int:
        """The number of samples, n."""
        raise NotImplementedError(f"{type(self).__name__} must define __len__()")

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The samples at int64 ``[B]``, as inputs and targets.

        Of sequences: int64 ``[B, T]``, and the token after each, int64 ``[B, T]``. Of samples with classes: float32
        ``[B, *input_shape]``, and the classes, int64 ``[B]``.

        Raises:
            IndexError: for an index that is no sample's.
        """
        raise NotImplementedError(f"{type(self).__name__} must define batch()")


@dataclass(frozen=True, eq=False)
class LabelledDataset(Dataset):
    """Samples in memory, each with its class.

    Args:
        inputs: float32 ``[n, *input_shape]``.
        labels: int64 ``[n]``.

    Raises:
        TypeError: if they are of other types, or differ in number.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        inputs, labels = self.inputs, self.labels
        if (inputs.dtype, labels.dtype, labels.shape) != (torch.float32, torch.int64, inputs.shape[:1]):
            got = f"{inputs.dtype} {list(inputs.shape)} and {labels.dtype} {list(labels.shape)}"
            raise TypeError(f"need inputs float32 [n, ...] and labels int64 [n], got {got}")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the samples, float32 ``[B, *input_shape]``, and their classes, int64 ``[B]``."""
        check_indices(indices, len(self))
        return self.inputs[indices], self.labels[indices]


@dataclass(frozen=True, eq=False)
class TokenDataset(Dataset):
    """Windows of a flat array of tokens: sequence i is ``tokens[i·T : i·T + T + 1]``, so each token is predicted once.

    Args:
        tokens: uint8, uint16 or uint32 ``[n]``, in memory or a memory map, which is read a batch at a time.
        sequence_length: T, in tokens.
        name: what errors call these tokens.
        sources: int64 ``[(n - 1) // T]``, where each sequence comes from; None: all from one place.
        source_names: what they are called.

    Raises:
        TypeError: if the tokens are of another type or shape.
        ValueError: if there are fewer than T + 1 of them.
    """

    tokens: Tokens
    sequence_length: int
    name: str = "the data"
    sources: Tensor | None = None
    source_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        dtype, shape, length = self.tokens.dtype, self.tokens.shape, self.sequence_length
        if dtype not in (np.uint8, np.uint16, np.uint32) or len(shape) != 1:
            raise TypeError(f"tokens must be uint8, uint16 or uint32 [n], got {dtype} {list(shape)}")
        if shape[0] <= length:
            raise ValueError(f"{self.name}: {shape[0]} tokens, but data.sequence_length={length} needs {length + 1}")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.sequence_length

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each int64 ``[B, T]``; IndexError for an index that is no sequence's."""
        check_indices(indices, len(self))
        starts = indices.numpy()[:, None] * self.sequence_length
        windows = torch.from_numpy(self.tokens[starts + np.arange(self.sequence_length + 1)].astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def check_indices(indices: Tensor, num_samples: int) -> None:
    """Raise IndexError unless all are in ``range(num_samples)``: a negative one would count from the end."""
    if not indices.numel():
        return
    least, most = (int(end) for end in indices.aminmax())
    if least < 0 or most >= num_samples:
        wrong = indices[(indices < 0) | (indices >= num_samples)]
        raise IndexError(f"samples are numbered 0 to {num_samples - 1}, got {wrong.tolist()}")


@dataclass(frozen=True, eq=False)
class Corpus:
    """What a source loaded: samples to train on, others to validate on, and what to say about them.

    Args:
        train: the training samples.
        validation: samples that are never trained on.
        task: what its samples pose.
        unit: what losses and speeds are counted by: a token is a byte or a tokenizer's id.
        description: a line for the start of the run.
        fingerprint: a SHA-256 in hex; workers that agree on it hold the same samples, with the same labels and sources.
    """

    train: Dataset
    validation: Dataset
    task: Task
    unit: Unit
    description: str
    fingerprint: str


def fingerprint(*arrays: NDArray[Any]) -> str:
    """SHA-256, in hex, of the arrays' types, sizes and contents."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}[{array.size}]".encode())  # so that moving a token over a boundary shows
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class DataConfig(ComponentConfig):
    """Base of all data sources' configs."""

    has_labels: ClassVar[bool] = False
    """Whether its training samples have classes, by which a partition can divide them."""
    has_sources: ClassVar[bool] = False
    """Whether its training samples tell where they come from."""

    def check(self) -> None:
        """Raise ValueError for what is wrong and can be seen without loading, such as a missing file."""

    def build(self, seed: int) -> Corpus:
        """Load the corpus; ``seed`` is used by synthetic sources only.

        Raises:
            ValueError: if the files cannot be used, with the file and the reason.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build()")


class TokenDataConfig(DataConfig):
    """Base of the configs of sources that yield sequences of tokens."""

    sequence_length: int = Field(128, gt=0)
    """Tokens per sequence (bytes, where tokens are bytes)."""


data_sources: Registry[DataConfig] = Registry("data", default="python_source")
