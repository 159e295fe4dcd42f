"""SOAP (Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, arXiv 2409.11321): Adam in Shampoo's eigenbasis.

With L ≈ EMA(GGᵀ), R ≈ EMA(GᵀG) and their eigenvectors Q_L and Q_R, an update t is

    G' = Q_LᵀGQ_R      m' ← β₁m' + (1 − β₁)G'      v' ← β₂v' + (1 − β₂)G'²
    W ← (W − η·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·Q_L(m'/(√v' + ε))Q_Rᵀ)·(1 − ηλ)

after which L and R take the gradient in, and every ``frequency`` updates the bases turn by one power iteration, Q ← orth(LQ),
their columns sorted first. As the public code (nikhilvyas/SOAP): the first gradient only makes the bases, ε comes before the
correction of bias, and the decay after the step. Where that code rotates m' out and in again at every step, here it is rotated
when the bases turn; state is float32 for parameters of any dtype; and matrices of one shape are computed together.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from disttrain.optim.adamw import Beta
from disttrain.optim.base import optimizers
from disttrain.optim.blocks import Block
from disttrain.optim.checks import check_betas, check_count, check_positive
from disttrain.optim.compiled import maybe_compiled
from disttrain.optim.matrix_config import MatrixOptimizerConfig
from disttrain.optim.matrix_optimizer import MatrixOptimizer, Stack, State
from disttrain.optim.subspace import orthonormalise


class SOAP(MatrixOptimizer):
    """SOAP for matrices; a group with ``algorithm="adamw"`` is for everything else.

    Args:
        params: parameters or groups; see :class:`MatrixOptimizer`.
        lr: η.
        betas: β₁ and β₂; L and R have β₂'s memory too.
        eps: ε.
        weight_decay: λ; decoupled, times lr.
        frequency: updates between turns of the bases.
        max_size: a side that is longer has no basis.
        more_axes, split, compile: see :class:`MatrixOptimizer`.

    Raises:
        ValueError: for a setting out of its range, or a parameter that is no matrix.
    """

    algorithm = "soap"
    decay_follows = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        frequency: int = 10,
        max_size: int = 10_000,
        **common: Any,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            frequency=frequency,
            max_size=max_size,
            **common,
        )

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError unless the settings make sense."""
        check_betas(group["betas"])
        check_positive(group, "eps")
        check_count(group, "frequency")
        check_count(group, "max_size")

    def fresh_state(self, shape: tuple[int, ...], group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """2mn + 2m² + 2n² numbers, without those of a side that is too long."""
        *batch, m, n = shape
        sides = {side: size for side, size in (("left", m), ("right", n)) if size <= group["max_size"]}
        factors = {f"{side}{what}": (*batch, size, size) for side, size in sides.items() for what in ("", "_basis")}
        return {"momentum": shape, "second": shape} | factors

    def direction(self, g: Tensor, state: State, stack: Stack) -> tuple[Tensor | None, State]:
        """Adam's quotient, rotated back and corrected for bias; None for the first gradient."""
        (beta1, beta2), step = stack.group["betas"], stack.step - 1  # the first gradient is no update
        bases = (state.get("left_basis"), state.get("right_basis"))
        new: State = {}
        moved = None
        if step > 0:
            advance = maybe_compiled(soap_direction, stack.group["compile"])
            correction = torch.tensor(math.sqrt(1 - beta2**step) / (1 - beta1**step), dtype=torch.float64)
            settings = beta1, beta2, stack.group["eps"]
            moved, new["momentum"], new["second"] = advance(g, state["momentum"], state["second"], bases, correction, settings)
        for side, rows in (("left", g), ("right", g.mT)):
            if side in state:
                new[side] = torch.lerp(state[side], rows @ rows.mT, 1 - beta2)
        if step == 0:
            return None, new | {f"{side}_basis": eigenvectors(new[side]) for side in ("left", "right") if side in new}
        if step % stack.group["frequency"] == 0:
            new |= turn(state | new)
        return moved, new

    def scale(self, m: int, n: int, group: dict[str, Any]) -> float:
        """1."""
        return 1.0

    def cost(self, block: Block, group: dict[str, Any]) -> float:
        """Six products of the cubic kind, and QR every ``frequency`` updates."""
        m, n = block.matrix
        return float(block.count * (m + n) * (3 * m * n + 4 * (m * m + n * n) / group["frequency"]))


def soap_direction(
    g: Tensor,
    momentum: Tensor,
    second: Tensor,
    bases: tuple[Tensor | None, Tensor | None],
    correction: Tensor,
    settings: tuple[float, float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """The update's direction, m' and v' anew; all ``[k, m, n]``, the latter two in the eigenbases."""
    beta1, beta2, eps = settings
    g = into(g, bases)
    momentum, second = torch.lerp(momentum, g, 1 - beta1), torch.lerp(second, g.square(), 1 - beta2)
    return out_of(momentum / (second.sqrt() + eps), bases) * correction, momentum, second


def turn(state: State) -> State:
    """One power iteration of each basis; v' is sorted along, m' stays what it is outside the bases."""
    old = (state.get("left_basis"), state.get("right_basis"))
    second, new = state["second"], {}
    for side, axis in (("left", -2), ("right", -1)):
        if side not in state:
            continue
        factor, basis = state[side], state[f"{side}_basis"]
        order = (basis * (factor @ basis)).sum(-2).argsort(dim=-1, descending=True)  # by the diagonal of QᵀLQ
        along = order.unsqueeze(-1 if axis == -2 else -2)
        second = second.gather(axis, along.expand_as(second))
        new[f"{side}_basis"] = orthonormalise(factor @ basis.gather(-1, order.unsqueeze(-2).expand_as(basis)))
    momentum = into(out_of(state["momentum"], old), (new.get("left_basis"), new.get("right_basis")))
    return new | {"second": second, "momentum": momentum}


def into(x: Tensor, bases: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """Q_LᵀXQ_R; None is the identity."""
    left, right = bases
    x = x if left is None else left.mT @ x
    return x if right is None else x @ right


def out_of(x: Tensor, bases: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """Q_LXQ_Rᵀ, the inverse of :func:`into`."""
    left, right = bases
    x = x if left is None else left @ x
    return x if right is None else x @ right.mT


def eigenvectors(factor: Tensor) -> Tensor:
    """Of symmetric matrices ``[k, n, n]``, by descending eigenvalue."""
    vectors: Tensor
    try:
        vectors = torch.linalg.eigh(factor).eigenvectors
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # it happens in float32
        vectors = torch.linalg.eigh(factor.double()).eigenvectors.to(factor.dtype)
    return vectors.flip(-1)


@optimizers.register
class SOAPConfig(MatrixOptimizerConfig):
    """SOAP for matrices; AdamW, whose settings start with ``adamw_``, for the rest."""

    optimizer = SOAP
    name: Literal["soap"] = "soap"
    lr: float = Field(3e-3, gt=0)
    """The peak learning rate of the matrices, which the schedule multiplies."""
    betas: tuple[Beta, Beta] = (0.95, 0.95)
    """Memory of the first moment, and of the second and the bases."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.01, ge=0)
    """Share of a matrix removed per step, times lr."""
    frequency: int = Field(10, ge=1)
    """Updates between turns of the bases."""
    max_size: int = Field(10_000, ge=1)
    """A side that is longer has no basis."""
    adamw_lr: float = Field(3e-3, gt=0)
    """The peak learning rate of everything but matrices, which the schedule multiplies too."""

    def settings(self) -> dict[str, Any]:
        """The optimizer's own."""
        return {"betas": self.betas, "eps": self.eps, "frequency": self.frequency, "max_size": self.max_size}
