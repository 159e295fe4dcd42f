"""COSMOS (Liu et al., COSMOS: A Hybrid Adaptive Optimizer for Memory-Efficient Training of LLMs, arXiv 2502.17410).

The leading r directions of a gradient's row space are stepped as SOAP would, by Adam's quotient in a slowly turning basis U; what
is left, as Muon would, by Newton–Schulz. It keeps a momentum and r(m + n) + r² numbers more per matrix, where SOAP keeps
2mn + 2m² + 2n².

With gradient G ``[m, n]``, momentum M, basis U ``[n, r]``, S ≈ Uᵀ·EMA(GᵀG)·U and the second moment V of GU, an update t is

    M ← β₁M + (1 − β₁)G                                    U' = orth(β₂US + (1 − β₂)GᵀGU),  T = UᵀU'
    S ← β₂TᵀST + (1 − β₂)(GU')ᵀ(GU')                       V ← β₂V + (1 − β₂)(GU')²
    Ĝ = ((1 − β₁)G + β₁M)/(1 − β₁ᵗ⁺¹)                      (Nesterov; else M/(1 − β₁ᵗ))
    A = (ĜU' ÷ √(V/(1 − β₂ᵗ)))U'ᵀ                          B = √(mn)·NORM(NewtonSchulz(Ĝ − ĜU'U'ᵀ))
    W ← (1 − ηλ)W − ηρ·√(mn)·NORM(A + γB)                  NORM(X) = X/‖X‖: the update's RMS is ηρ

The paper's own text was not available to us: this follows the public code (lliu606/COSMOS, of 2026-02-01), and leaves it where it
is wrong: state owns its memory (there the basis is a view of a full n × n matrix); ``nesterov=False`` has momentum; gradients are
not overwritten; the rank is clamped; the first basis needs no full SVD; and two quotients of rounding errors are not blown up to
full size: a residual below 1e-5 of the gradient counts as none, and Adam's denominator is at least 1e-5 of its largest entry.
``parity="reference"`` undoes the last three: exact first basis, no such guards.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from disttrain.optim.adamw import Beta
from disttrain.optim.base import optimizers
from disttrain.optim.checks import check_betas, check_choice, check_count, check_dtype, check_least, check_positive
from disttrain.optim.compiled import maybe_compiled
from disttrain.optim.matrix_config import NS_DTYPES, MatrixOptimizerConfig, NSDtype
from disttrain.optim.matrix_optimizer import MatrixOptimizer, Stack, State
from disttrain.optim.newton_schulz import TABLES, Coefficients, newton_schulz
from disttrain.optim.subspace import initial_basis, leading_singular_vectors, orthonormalise

LEAST_RESIDUAL = 1e-5
"""Share of the gradient's norm below which what the basis does not span is rounding."""
LEAST_DENOMINATOR = 1e-5
"""Share of the largest denominator of a matrix below which a direction is dead."""


class COSMOS(MatrixOptimizer):
    """COSMOS for matrices; a group with ``algorithm="adamw"`` is for everything else.

    Args:
        params: parameters or groups; see :class:`MatrixOptimizer`.
        lr: η, the base learning rate; matrices move by ``lr · lr_ratio`` in the root mean square.
        lr_ratio: ρ.
        betas: memory of the momentum, and of the basis and second moment.
        eps: added to the denominator.
        rank: r, of the part stepped as by SOAP; clamped to min(m, n), with a warning.
        gamma: γ, weight of the part stepped as by Muon.
        weight_decay: λ; decoupled, times the base lr.
        nesterov: whether the gradient of now counts once more.
        refresh_every: updates between turns of the basis; its statistics are kept up in each.
        gamma_scaling: "fixed", or "width": γ·√(r/n), with which the shares of both parts do not depend on n.
        project: the basis is of the "in" side n, as in the public code, or of the smaller ("min").
        parity: "corrected", or "reference" for the public code's numbers; see the top of this file.
        coefficients: of Newton–Schulz.
        ns_dtype: of its products.
        more_axes, split, compile: see :class:`MatrixOptimizer`.

    Raises:
        ValueError: for a setting out of its range, or a parameter that is no matrix.
    """

    algorithm = "cosmos"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        lr_ratio: float = 0.2,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        rank: int = 64,
        gamma: float = 0.2,
        weight_decay: float = 0.1,
        nesterov: bool = True,
        refresh_every: int = 1,
        gamma_scaling: Literal["fixed", "width"] = "fixed",
        project: Literal["in", "min"] = "in",
        parity: Literal["corrected", "reference"] = "corrected",
        coefficients: Coefficients = "jordan",
        ns_dtype: torch.dtype = torch.bfloat16,
        **common: Any,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            lr_ratio=lr_ratio,
            betas=betas,
            eps=eps,
            rank=rank,
            gamma=gamma,
            weight_decay=weight_decay,
            nesterov=nesterov,
            refresh_every=refresh_every,
            gamma_scaling=gamma_scaling,
            project=project,
            parity=parity,
            coefficients=coefficients,
            ns_dtype=ns_dtype,
            **common,
        )

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError unless the settings make sense; warn once of ranks that are clamped."""
        check_positive(group, "eps")
        for key in ("lr_ratio", "gamma"):
            check_least(group, key, 0)
        for key in ("rank", "refresh_every"):
            check_count(group, key)
        check_dtype(group, "ns_dtype")
        check_betas(group["betas"])
        check_choice(group, "gamma_scaling", ("fixed", "width"))
        check_choice(group, "project", ("in", "min"))
        check_choice(group, "parity", ("corrected", "reference"))
        check_choice(group, "coefficients", tuple(TABLES))
        smaller = [name for name, shape in self.block_shapes(group) if min(shape[-2:]) < group["rank"]]
        if smaller:
            warnings.warn(
                f"rank={group['rank']} is more than {len(smaller)} of the matrices have, {smaller[0]} among them: "
                "theirs is clamped to their smaller side",
                stacklevel=7,  # the caller of the constructor
            )

    def fresh_state(self, shape: tuple[int, ...], group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """mn + r(m + n) + r² numbers."""
        *batch, m, n = shape
        rank = min(group["rank"], m, n)
        if _is_turned(m, n, group):
            m, n = n, m
        return {
            "momentum": shape,
            "basis": (*batch, n, rank),
            "gram": (*batch, rank, rank),
            "second": (*batch, m, rank),
        }

    def direction(self, g: Tensor, state: State, stack: Stack) -> tuple[Tensor, State]:
        """A + γB, with a root mean square of 1, and all state."""
        group, turned = stack.group, _is_turned(g.shape[-2], g.shape[-1], stack.group)
        momentum = state["momentum"].mT if turned else state["momentum"]
        g = g.mT if turned else g
        beta1, beta2 = group["betas"]
        basis, gram, projected = turn_basis(g, state["basis"], state["gram"], stack.step, beta2, group)
        bias1 = 1 - beta1 ** (stack.step + 1 if group["nesterov"] else stack.step)
        biases = torch.tensor([bias1, 1 - beta2**stack.step], dtype=torch.float64)
        settings = settings_of(group, basis.shape[-1], basis.shape[-2])
        advance = maybe_compiled(cosmos_direction, group["compile"])
        momentum = momentum.lerp_(g, 1 - beta1)
        moved, second = advance(g, projected, momentum, basis, state["second"], biases, settings)
        new = {"momentum": momentum.mT if turned else momentum, "basis": basis, "gram": gram, "second": second}
        return moved.mT if turned else moved, new

    def scale(self, m: int, n: int, group: dict[str, Any]) -> float:
        """ρ."""
        return float(group["lr_ratio"])

    def mismatch(self, entry: str, saved: Tensor, fresh: Tensor) -> str:
        """Names both ranks, where it is the rank that differs."""
        if entry.startswith("basis") and saved.shape[:-1] == fresh.shape[:-1]:
            return f"the state to load has rank={saved.shape[-1]} where this optimizer has rank={fresh.shape[-1]}: keep the rank"
        return super().mismatch(entry, saved, fresh)


def turn_basis(
    g: Tensor, basis: Tensor, gram: Tensor, step: int, beta2: float, group: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of orthogonal iteration with the EMA of GᵀG, which is never formed: β₂USUᵀ + (1 − β₂)GᵀG.

    Args:
        g: ``[k, m, n]``.
        basis: U, ``[k, n, r]``.
        gram: S, ``[k, r, r]``.
        step: from 1, when the basis is made from ``g`` alone.
        beta2: memory.
        group: for ``parity`` and ``refresh_every``.

    Returns:
        U and S anew, and GU.
    """
    if step == 1:
        first = initial_basis if group["parity"] == "corrected" else leading_singular_vectors
        basis = first(g, basis.shape[-1])
        gram = torch.zeros_like(gram)
    elif (step - 1) % group["refresh_every"] == 0:
        turned = orthonormalise(beta2 * (basis @ gram) + (1 - beta2) * (g.mT @ (g @ basis)))
        change = basis.mT @ turned
        basis, gram = turned, change.mT @ gram @ change
    projected = g @ basis
    gram = beta2 * gram + (1 - beta2) * (projected.mT @ projected)
    return basis, (gram + gram.mT) / 2, projected


def cosmos_direction(
    g: Tensor, projected: Tensor, momentum: Tensor, basis: Tensor, second: Tensor, biases: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """The update's direction, in the basis as it is now.

    Args:
        g: G, ``[k, m, n]``.
        projected: GU, ``[k, m, r]``.
        momentum: M, ``[k, m, n]``, which has taken G in.
        basis: U, ``[k, n, r]``.
        second: V, ``[k, m, r]``.
        biases: what Ĝ and V are divided by, ``[2]``.
        settings: constants.

    Returns:
        NORM(A + γB)·√(mn), and V anew.
    """
    (beta1, beta2), (bias1, bias2) = settings.betas, biases.unbind()
    size = math.sqrt(g.shape[-2] * g.shape[-1])
    second = torch.lerp(second, projected.square(), 1 - beta2)
    # Newton–Schulz needs no division by bias1. A tensor of its own, of which the residual is made in place.
    biased = torch.lerp(g, momentum, beta1) if settings.nesterov else momentum.clone()
    z = torch.bmm(biased, basis)
    denominator = (second / bias2).sqrt()
    if settings.guarded:
        denominator = denominator.maximum(LEAST_DENOMINATOR * denominator.amax((-2, -1), keepdim=True))
    direction = torch.bmm(z / bias1 / (denominator + settings.eps), basis.mT)
    if basis.shape[-1] < basis.shape[-2] and settings.gamma > 0:
        residual = biased.baddbmm_(z, basis.mT, alpha=-1)
        norm = _norm(residual)
        rest = newton_schulz(residual, settings.coefficients, settings.ns_dtype, norm=norm).to(g.dtype)
        weight = _over_norm(settings.gamma * size, rest)
        if settings.guarded:
            weight = weight * (norm > LEAST_RESIDUAL * torch.hypot(norm, _norm(z)))  # by Pythagoras, of the whole
        direction.addcmul_(weight, rest)
    return direction.mul_(_over_norm(size, direction)), second


class Settings(NamedTuple):
    """What ``cosmos_direction`` takes as constants: if one changes, it is compiled anew."""

    betas: tuple[float, float]
    eps: float
    gamma: float
    nesterov: bool
    guarded: bool
    coefficients: Coefficients
    ns_dtype: torch.dtype


def settings_of(group: dict[str, Any], rank: int, n: int) -> Settings:
    """A group's, for a basis ``[n, rank]``."""
    gamma = group["gamma"] * (math.sqrt(rank / n) if group["gamma_scaling"] == "width" else 1.0)
    guarded = group["parity"] == "corrected"
    return Settings(
        tuple(group["betas"]), group["eps"], gamma, group["nesterov"], guarded, group["coefficients"], group["ns_dtype"]
    )


def _is_turned(m: int, n: int, group: dict[str, Any]) -> bool:
    """Whether the basis is of the rows rather than the columns."""
    return bool(group["project"] == "min" and m < n)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return norm


def _over_norm(factor: float, x: Tensor) -> Tensor:
    """``factor``/‖x‖ of each matrix, ``[k, 1, 1]``; 0 where x is zero, or so small that the quotient would overflow."""
    norm = _norm(x)
    return torch.where(norm > factor * torch.finfo(x.dtype).tiny, factor / norm, 0.0)


@optimizers.register
class COSMOSConfig(MatrixOptimizerConfig):
    """COSMOS for matrices; AdamW, whose settings start with ``adamw_``, for the rest."""

    optimizer = COSMOS
    name: Literal["cosmos"] = "cosmos"
    lr: float = Field(2e-3, gt=0)
    """The peak base learning rate, which the schedule multiplies: matrices move by lr · lr_ratio in the root mean square."""
    lr_ratio: float = Field(0.2, gt=0)
    """What multiplies lr for matrices, but not for their weight decay."""
    betas: tuple[Beta, Beta] = (0.95, 0.95)
    """Memory of the momentum, and of the basis and the second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    rank: int = Field(64, ge=1)
    """Leading directions that are stepped as by SOAP; clamped to a matrix's smaller side."""
    gamma: float = Field(0.2, ge=0)
    """Weight of the rest, which is stepped as by Muon."""
    gamma_scaling: Literal["fixed", "width"] = "fixed"
    """width: gamma is multiplied by √(rank/n), with which both parts' shares do not depend on the width n."""
    nesterov: bool = True
    """Step along a mix of gradient and momentum instead of the momentum."""
    refresh_every: int = Field(1, ge=1)
    """Updates between turns of the basis."""
    project: Literal["in", "min"] = "in"
    """The basis is of a matrix's input side, or of its smaller side."""
    parity: Literal["corrected", "reference"] = "corrected"
    """reference: the public code's numbers, without guards against dividing rounding errors by each other."""
    coefficients: Coefficients = "jordan"
    """Newton–Schulz iterations: jordan, quintic and polar_express are of 5, deepseek of 10, which come closer to UVᵀ."""
    ns_dtype: NSDtype = "bfloat16"
    """Of their products."""

    def settings(self) -> dict[str, Any]:
        """The optimizer's own."""
        names = ("lr_ratio", "betas", "eps", "rank", "gamma", "gamma_scaling", "nesterov", "refresh_every", "project", "parity")
        own = {name: getattr(self, name) for name in names}
        return own | {"coefficients": self.coefficients, "ns_dtype": NS_DTYPES[self.ns_dtype]}
