"""The matrices inside a parameter: itself, the slices of stacked experts, a flattened convolution, the parts of a fused QKV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

MoreAxes = Literal["refuse", "flatten", "batch"]
"""What a parameter of three axes or more is: a mistake; the matrix ``[out, rest]`` (convolutions); or a batch of matrices, which
are its last two axes (stacked experts)."""


@dataclass(frozen=True, eq=False)
class Block:
    """A matrix of a parameter, or several of one shape.

    Attributes:
        parameter: whose it is.
        name: of the parameter and of the part: the same on every rank.
        suffix: of the names of its state: empty where the block is the whole parameter.
        rows: its part of the parameter's first axis.
        flat: whether all axes but the first are one.
    """

    parameter: nn.Parameter
    name: str
    suffix: str
    rows: slice
    flat: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """``[m, n]``, or ``[..., m, n]`` for a batch of matrices: the shape of its momentum."""
        part = self.part
        return tuple(part.flatten(1).shape if self.flat else part.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """``(m, n)``."""
        m, n = self.shape[-2:]
        return m, n

    @property
    def count(self) -> int:
        """How many matrices."""
        return self.part.numel() // prod(self.matrix)

    def of(self, tensor: Tensor) -> Tensor:
        """Its part of a tensor of the parameter's shape, such as the gradient: ``[count, m, n]``."""
        return tensor[self.rows].reshape(-1, *self.matrix)

    def shaped(self, update: Tensor) -> Tensor:
        """``[count, m, n]`` in the shape of its part of the parameter."""
        return update.reshape(self.part.shape)

    @property
    def part(self) -> Tensor:
        """Its part of the live parameter, a view."""
        return self.parameter.detach()[self.rows]


def blocks(group: dict[str, Any]) -> Iterator[Block]:
    """All blocks of a parameter group of matrices, in order."""
    for name, parameter in zip(group["names"], group["params"], strict=True):
        flat = parameter.ndim > 2 and group["more_axes"] == "flatten"
        if group["split"] is None:
            yield Block(parameter, name, "", slice(None), flat)
            continue
        start = 0
        for number, rows in enumerate(_split_rows(name, parameter, group["split"])):
            yield Block(parameter, f"{name}[{number}]", f".{number}", slice(start, start + rows), flat)
            start += rows


def unique_names(names: Sequence[str], taken: set[str]) -> list[str]:
    """``names``, those with a number behind them that are taken, or come twice: two modules may call their parameters alike."""
    unique = []
    for name in names:
        number, candidate = 1, name
        while candidate in taken or candidate in unique:
            number, candidate = number + 1, f"{name} ({number + 1})"
        unique.append(candidate)
    return unique


def check_shapes(group: dict[str, Any]) -> None:
    """Check that every parameter of a group of matrices is one.

    Raises:
        ValueError: saying which is not, and what to do.
    """
    for name, parameter in zip(group["names"], group["params"], strict=True):
        if type(parameter).__name__ == "DTensor":
            raise ValueError(
                f"{name} is a DTensor, of which this process sees a part: orthogonalising a part is not orthogonalising the "
                "matrix. Train it replicated (DDP), or in a group with algorithm='adamw'"
            )
        if parameter.ndim < 2:
            raise ValueError(
                f"{name} has shape {list(parameter.shape)}, which is no matrix: put it into a group with algorithm='adamw'"
            )
        if parameter.ndim > 2 and group["more_axes"] == "refuse":
            raise ValueError(
                f"{name} has shape {list(parameter.shape)}: say what it is by more_axes='flatten' (a convolution is the matrix "
                "[out, rest]) or more_axes='batch' (a matrix in the last two axes), or give its group algorithm='adamw'"
            )
        if not parameter.numel():
            raise ValueError(f"{name} has shape {list(parameter.shape)}, and no entry: leave it out")
        if group["split"] is not None:
            _split_rows(name, parameter, group["split"])


def _split_rows(name: str, parameter: Tensor, split: int | Sequence[int]) -> list[int]:
    """Rows of each part: ``split`` of equal size, or of the sizes given."""
    rows = len(parameter)
    if parameter.ndim != 2:
        raise ValueError(f"{name} has shape {list(parameter.shape)}: only a matrix can be split")
    sizes = [rows // max(1, split)] * split if isinstance(split, int) else list(split)
    if sum(sizes) != rows or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{name} has {rows} rows, which split={split} does not divide: give a number of equal parts, or sizes")
    return sizes


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Parts ``[count, ...]`` as one ``[sum of counts, ...]``; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def state_dtype(parameter: Tensor) -> torch.dtype:
    """Of what is kept for a parameter: float32, whatever the parameter's, or float64 for float64."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def gradient_of(parameter: Tensor) -> Tensor:
    """The gradient of a parameter that has one.

    Raises:
        RuntimeError: if it is sparse.
    """
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        raise RuntimeError("a sparse gradient cannot be stepped: make the embedding with sparse=False")
    return gradient
