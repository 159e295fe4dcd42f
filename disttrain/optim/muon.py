"""Muon (Jordan, https://kellerjordan.github.io/posts/muon/): the momentum of a weight matrix, orthogonalised.

    B ← μB + (1 − μ)G      Ĝ = (1 − μ)G + μB (Nesterov; else B)      W ← (1 − ηλ)W − η·s·NewtonSchulz(Ĝ)

with s = √max(1, m/n), or 0.2·√max(m, n), with which a matrix moves about as far as with AdamW at that learning rate (Moonlight,
arXiv 2502.16982). As torch.optim.Muon, but matrices of one shape are computed together, and bfloat16 parameters with
``nesterov=False`` keep their momentum (PyTorch #194664).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from disttrain.optim.base import optimizers
from disttrain.optim.checks import check_choice, check_dtype
from disttrain.optim.compiled import maybe_compiled
from disttrain.optim.matrix_config import NS_DTYPES, MatrixOptimizerConfig, NSDtype
from disttrain.optim.matrix_optimizer import MatrixOptimizer, Stack, State
from disttrain.optim.newton_schulz import TABLES, Coefficients, newton_schulz

Adjust = Literal["original", "match_rms_adamw"]


class Muon(MatrixOptimizer):
    """Muon for matrices; a group with ``algorithm="adamw"`` is for everything else.

    Args:
        params: parameters or groups; see :class:`MatrixOptimizer`.
        lr: η.
        weight_decay: λ; decoupled, times lr.
        momentum: μ.
        nesterov: whether the gradient of now counts once more.
        adjust: s: "original" or "match_rms_adamw".
        coefficients: of Newton–Schulz.
        ns_dtype: of its products.
        more_axes, split, compile: see :class:`MatrixOptimizer`.

    Raises:
        ValueError: for a setting out of its range, or a parameter that is no matrix.
    """

    algorithm = "muon"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust: Adjust = "original",
        coefficients: Coefficients = "jordan",
        ns_dtype: torch.dtype = torch.bfloat16,
        **common: Any,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            adjust=adjust,
            coefficients=coefficients,
            ns_dtype=ns_dtype,
            **common,
        )

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError unless the settings make sense."""
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum={group['momentum']} must be at least 0 and less than 1")
        check_choice(group, "adjust", ("original", "match_rms_adamw"))
        check_choice(group, "coefficients", tuple(TABLES))
        check_dtype(group, "ns_dtype")

    def fresh_state(self, shape: tuple[int, ...], group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """mn numbers."""
        return {"momentum": shape}

    def direction(self, g: Tensor, state: State, stack: Stack) -> tuple[Tensor, State]:
        """NewtonSchulz(Ĝ), and the momentum."""
        group = stack.group
        advance = maybe_compiled(muon_direction, group["compile"])
        settings = group["momentum"], group["nesterov"], group["coefficients"], group["ns_dtype"]
        momentum = state["momentum"].lerp_(g, 1 - group["momentum"])
        return advance(g, momentum, *settings), {"momentum": momentum}

    def scale(self, m: int, n: int, group: dict[str, Any]) -> float:
        """s."""
        return math.sqrt(max(1, m / n)) if group["adjust"] == "original" else 0.2 * math.sqrt(max(m, n))


def muon_direction(
    g: Tensor, momentum: Tensor, mu: float, nesterov: bool, coefficients: Coefficients, ns_dtype: torch.dtype
) -> Tensor:
    """NewtonSchulz(Ĝ) for gradients and momenta, which have taken them in, ``[k, m, n]``."""
    smoothed = torch.lerp(g, momentum, mu) if nesterov else momentum
    return newton_schulz(smoothed, coefficients, ns_dtype).to(g.dtype)


@optimizers.register
class MuonConfig(MatrixOptimizerConfig):
    """Muon for matrices; AdamW, whose settings start with ``adamw_``, for the rest."""

    optimizer = Muon
    name: Literal["muon"] = "muon"
    lr: float = Field(4e-3, gt=0)
    """The peak learning rate of the matrices, which the schedule multiplies."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Memory of the running mean of gradients."""
    nesterov: bool = True
    """Orthogonalise a mix of gradient and momentum instead of the momentum."""
    adjust: Adjust = "match_rms_adamw"
    """What multiplies lr for a matrix [m, n]: √max(1, m/n), or 0.2·√max(m, n), with which it moves about as far as with
    AdamW at that lr."""
    coefficients: Coefficients = "jordan"
    """Newton–Schulz iterations: jordan, quintic and polar_express are of 5, deepseek of 10, which come closer to UVᵀ."""
    ns_dtype: NSDtype = "bfloat16"
    """Of their products."""

    def settings(self) -> dict[str, Any]:
        """The optimizer's own."""
        return {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "adjust": self.adjust,
            "coefficients": self.coefficients,
            "ns_dtype": NS_DTYPES[self.ns_dtype],
        }
