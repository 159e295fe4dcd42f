"""What a server makes of the clients' mean move Δ̄: a step of its own, as a plain function of vectors.

::

    sgd        x ← x + η Δ̄
    momentum   m ← β₁ m + Δ̄                  x ← x + η m                       FedAvgM (arXiv 1909.06335)
    adam       m ← β₁ m + (1 − β₁) Δ̄         v ← β₂ v + (1 − β₂) Δ̄²
    adagrad    m the same                     v ← v + Δ̄²
    yogi       m the same                     v ← v − (1 − β₂) Δ̄² sign(v − Δ̄²)
               x ← x + η m / (√v + τ)                                          FedOpt (arXiv 2003.00295, algorithm 2)

v begins at τ², and there is no bias correction, as in the paper; Flower's begin at 0 and are corrected. With β₁ = 0 momentum is
sgd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Rule: TypeAlias = Literal["sgd", "momentum", "adam", "adagrad", "yogi"]


@dataclass(frozen=True)
class ServerOptimizer:
    """A rule and its numbers.

    Args:
        rule: which.
        lr: η.
        beta1: β₁, of the mean move.
        beta2: β₂, of its square.
        tau: τ, below which coordinates no longer differ.

    Raises:
        ValueError: for an unknown rule, or numbers out of range.
    """

    rule: Rule = "sgd"
    lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"the server's rule must be one of {', '.join(get_args(Rule))}, got {self.rule!r}")
        if not (self.lr > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.tau > 0):
            raise ValueError(f"need lr > 0, betas in [0, 1) and tau > 0, got {self}")

    def init(self, x: Tensor) -> dict[str, Tensor]:
        """The rule's vectors ``[d]``, for a model ``[d]``."""
        if self.rule == "sgd":
            return {}
        moments = {"m": torch.zeros_like(x)}
        return moments if self.rule == "momentum" else moments | {"v": torch.full_like(x, self.tau**2)}

    def step(self, server: Mapping[str, Tensor], delta: Tensor) -> dict[str, Tensor]:
        """The server's new vectors, ``x`` among them, after a mean move ``[d]``."""
        x = server["x"]
        if self.rule == "sgd":
            return {"x": x + self.lr * delta}
        if self.rule == "momentum":
            m = self.beta1 * server["m"] + delta
            return {"x": x + self.lr * m, "m": m}
        m = self.beta1 * server["m"] + (1 - self.beta1) * delta
        v = self._second_moment(server["v"], delta.square())
        return {"x": x + self.lr * m / (v.sqrt() + self.tau), "m": m, "v": v}

    def _second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        if self.rule == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        if self.rule == "adagrad":
            return v + square
        return v - (1 - self.beta2) * square * torch.sign(v - square)
