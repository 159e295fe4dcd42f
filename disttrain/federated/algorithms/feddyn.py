"""FedDyn: every client's loss is bent, so that their stationary points agree.

"Federated Learning Based on Dynamic Regularization" (arXiv 2111.04263), algorithm 1::

    down: x
    client:  y ← x;  K times  y ← y − η_l (∇f_i(y; ξ) − h_i + α (y − x));   h_i ← h_i − α (y − x);   up: Δ_i = y − x
    server:  h ← h − (α/N) Σ Δ_i;   x ← mean y − h / α, the mean over those that answered

h_i is what ∇f_i(y) would be at the exact minimum of the bent loss; K steps of SGD come near it. h stays the mean of all h_i,
zero at first. The authors divide α by the client's share of the samples; here all clients count alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain.federated.algorithm import Algorithm, AlgorithmConfig, Replies, Reply, Vectors, federated_algorithms, rows_of
from disttrain.federated.local_steps import descend
from disttrain.federated.work import Plan, Work


@dataclass(frozen=True)
class FedDyn(Algorithm):
    """Dynamic regularization.

    Args:
        alpha: α, how strongly a client is held to the server's model.

    Raises:
        ValueError: unless α is positive.
    """

    alpha: float = 0.1
    client_vectors: ClassVar[tuple[str, ...]] = ("gradient",)
    adds_up: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")

    def init(self, x: Tensor) -> Vectors:
        """The model, and h = 0."""
        return {"x": x.clone(), "h": torch.zeros_like(x)}

    def client(self, message: Vectors, state: Vectors, work: Work) -> tuple[Reply, Vectors]:
        """Steps on the bent loss, which is then bent further."""
        x, h = rows_of(message["x"], len(work)), state["gradient"]
        y = descend(x, work, lambda gradient, y: gradient - h + self.alpha * (y - x))
        return {"delta": work.send(y - x)}, {"gradient": h - self.alpha * (y - x)}

    def aggregate(self, server: Vectors, replies: Replies, plan: Plan) -> Vectors:
        """The mean of those that answered, moved by what all of them have been bent."""
        delta = replies["delta"]
        h = server["h"] - self.alpha / plan.num_clients * delta.vector
        return {"x": server["x"] + delta.mean - h / self.alpha, "h": h}


@federated_algorithms.register
class FedDynConfig(AlgorithmConfig):
    """A penalty for each client that learns where the others want to go (arXiv 2111.04263)."""

    name: Literal["feddyn"] = "feddyn"
    alpha: float = Field(0.1, gt=0)
    """α; the authors take 0.01 and less for long local training, others 0.1."""

    def build(self) -> FedDyn:
        """The algorithm itself."""
        return FedDyn(self.alpha)
