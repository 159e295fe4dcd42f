"""AdamW for the groups of a :class:`MatrixOptimizer` that are no matrices: torch's own function, state in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.adamw import adamw

from disttrain.optim.blocks import gradient_of, state_dtype


def step_adamw(group: Mapping[str, Any], state: Mapping[Tensor, dict[str, Any]]) -> None:
    """One update of the group's parameters that have a gradient; those of fewer than 32 bits on a float32 copy.

    Args:
        group: with ``params, lr, betas, eps, weight_decay, fused``.
        state: by parameter: ``step, exp_avg, exp_avg_sq``.
    """
    stepped = [p for p in group["params"] if p.grad is not None]
    wide = [p if p.dtype == state_dtype(p) else p.to(state_dtype(p)) for p in stepped]
    adamw(
        wide,
        [gradient_of(p).to(w.dtype) for p, w in zip(stepped, wide, strict=True)],
        [state[p]["exp_avg"] for p in stepped],
        [state[p]["exp_avg_sq"] for p in stepped],
        [],
        [state[p]["step"] for p in stepped],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
        fused=group["fused"],
    )
    for p, w in zip(stepped, wide, strict=True):
        if w is not p:
            p.copy_(w)
