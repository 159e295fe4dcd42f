"""How much state optimizers keep for the weight matrices of compare_optimizers.py, and of a large block."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from optimizer_runs import CONFIG, GRIDS, WIDTHS, Run
from torch import Tensor, nn

from disttrain.config import load_config
from disttrain.optim import COSMOS, SOAP, Muon
from disttrain.task import TokenTask


def memory_figures() -> dict[str, Any]:
    """Bytes of state of the matrices: of both models, and of a block of width 2048 with rank 64, by storage and by formula."""
    models = {str(width): {name: model_state_bytes(name, width) for name in GRIDS} for width in WIDTHS}
    d, rank = 2048, 64
    shapes = [(d, d)] * 4 + [(4 * d, d), (d, 4 * d)]
    stored = {
        "adamw": 2 * sum(4 * m * n for m, n in shapes),
        "muon": state_bytes(Muon(matrices(shapes))),
        "soap": state_bytes(SOAP(matrices(shapes))),
        "cosmos": state_bytes(COSMOS(matrices(shapes), rank=rank)),
    }
    counted = {"soap": soap_numbers(shapes), "soap_as_paper": soap_numbers(shapes, 1), "cosmos": cosmos_numbers(shapes, rank)}
    return {
        "models_bytes": models,
        "block_2048_bytes": stored,
        "block_2048_numbers_per_d2": {name: numbers / d**2 for name, numbers in counted.items()},
    }


def soap_numbers(shapes: Iterable[tuple[int, int]], per_side: int = 2) -> int:
    """Of state that SOAP keeps for matrices [m, n]: two moments, and ``per_side`` square matrices a side.

    It has two a side, the factor and its eigenvectors. Counting one gives 66 d² for a transformer's block of width d (four d × d,
    one d × 4d, one 4d × d), with which COSMOS needs 19 % of it, as the paper says; counting both, 108 d² and 11.6 %.
    """
    return sum(2 * m * n + per_side * (m * m + n * n) for m, n in shapes)


def cosmos_numbers(shapes: Iterable[tuple[int, int]], rank: int) -> int:
    """Of state that COSMOS keeps: mn + r(m + n) + r² each."""
    ranks = [(m, n, min(rank, m, n)) for m, n in shapes]
    return sum(m * n + r * (m + n) + r * r for m, n, r in ranks)


def matrices(shapes: Iterable[tuple[int, int]]) -> list[nn.Parameter]:
    """Parameters that take no memory."""
    return [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]


def model_state_bytes(name: str, width: int) -> int:
    """Of the matrices of the quickstart's model."""
    run = Run(name, width, lr=1e-3, adamw_lr=1e-3, seed=0, steps=1)
    config = load_config(CONFIG, run.overrides(Path("unused"))).config
    module = config.model.build(TokenTask(vocabulary_size=256, sequence_length=128))
    optimizer = config.optimizer.build(module)
    if name == "adamw":  # torch makes its state in the first step
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return state_bytes(optimizer)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of the storage behind the state of all matrices, without their counts of steps."""
    groups = [group for group in optimizer.param_groups if group.get("role", "matrix") == "matrix"]
    state = [value for group in groups for p in group["params"] for value in optimizer.state[p].values()]
    return sum(value.untyped_storage().nbytes() for value in state if isinstance(value, Tensor) and value.ndim)
