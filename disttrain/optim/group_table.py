"""What an optimizer does with each group of parameters, as rows to print once at the start."""

from __future__ import annotations

from typing import NamedTuple

from torch.optim import Optimizer


class GroupRow(NamedTuple):
    """One group; the fields are the table's columns."""

    group: str
    optimizer: str
    tensors: int
    parameters: int
    lr: float
    weight_decay: float


def table(optimizer: Optimizer) -> list[GroupRow]:
    """A row per parameter group, read from the optimizer itself, so that it shows what is, not what was asked for."""
    return [
        GroupRow(
            group=group.get("role", "all"),
            optimizer="AdamW" if group.get("algorithm") == "adamw" else type(optimizer).__name__,
            tensors=len(group["params"]),
            parameters=sum(parameter.numel() for parameter in group["params"]),
            lr=float(group["lr"]),
            weight_decay=float(group.get("weight_decay", 0.0)),
        )
        for group in optimizer.param_groups
    ]
