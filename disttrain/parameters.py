"""A module's trainable parameters as one flat vector, of which every parameter is a view.

Strategies exchange and mix vectors ``[workers, d]``, not modules. Here the vector *is* the model: writing to it changes the
parameters, and the other way round, without a copy. Every parameter starts at a multiple of ``alignment`` entries, so that a
compressor's blocks never straddle two parameters; the entries between are zero and stay zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

CACHE_LINE_BYTES = 64  # torch's own CPU allocations start at such a multiple: kernels then take the same path as without us


@dataclass(frozen=True)
class Unit:
    """One parameter's place in the flat vector: entries ``offset`` to ``offset + numel``."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Entries of the parameter, padding aside."""
        return prod(self.shape)

    def of(self, x: Tensor) -> Tensor:
        """The parameter's part of flat vectors ``[..., d]``, as a view ``[..., *shape]``."""
        return x.narrow(-1, self.offset, self.numel).view(x.shape[:-1] + self.shape)


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in a vector of ``d`` entries; the same on every worker."""

    units: tuple[Unit, ...]
    d: int

    @property
    def numel(self) -> int:
        """Entries of all parameters, padding aside."""
        return sum(unit.numel for unit in self.units)

    def named(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The parameters inside flat vectors ``[..., d]``, by name, as views ``[..., *shape]``."""
        for unit in self.units:
            yield unit.name, unit.of(x)


class FlatParameters:
    """Moves a module's trainable parameters into one vector and keeps them there as views.

    Tied parameters appear once, under their first name. Frozen parameters stay where they are: they are never exchanged.

    Args:
        module: the module; its parameters keep their identity, so optimizers built before stay valid.
        alignment: entries to a multiple of which every parameter starts; by default one cache line.

    Attributes:
        layout: names, shapes and offsets.
        x: ``[1, d]``, the live parameters.

    Raises:
        ValueError: if no parameter is trainable, or if two differ in dtype or device.
    """

    def __init__(self, module: nn.Module, alignment: int | None = None) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the module has no trainable parameter")
        _check_alike(named)
        first = named[0][1]
        alignment = alignment or max(1, CACHE_LINE_BYTES // first.element_size())
        self.layout = lay_out(named, alignment)
        self.x = torch.zeros(1, self.layout.d, dtype=first.dtype, device=first.device)
        self.parameters = dict(named)
        for (_, parameter), (_, view) in zip(named, self.layout.named(self.x[0]), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view


def _check_alike(named: list[tuple[str, nn.Parameter]]) -> None:
    first_name, first = named[0]
    for name, parameter in named:
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            raise ValueError(
                f"trainable parameters must share one dtype and device: {first_name} is {first.dtype} on {first.device}, "
                f"{name} is {parameter.dtype} on {parameter.device}; convert the module, or freeze the odd ones out"
            )


def lay_out(named: Sequence[tuple[str, Tensor]], alignment: int = 1) -> Layout:
    """Parameters one after another, each at a multiple of ``alignment`` entries."""
    units, offset = [], 0
    for name, parameter in named:
        units.append(Unit(name, tuple(parameter.shape), offset))
        offset += -(-parameter.numel() // alignment) * alignment
    return Layout(tuple(units), offset)


def sha256_of(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the raw bytes of named tensors, in the order of their names; equal only for bitwise equal tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        raw = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode())
        digest.update(raw.numpy().data)
    return digest.hexdigest()
