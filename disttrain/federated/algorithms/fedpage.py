"""FedPAGE: now and then a large gradient of everybody, and in between a few clients that carry it on.

"FedPAGE: A Fast Local Stochastic Gradient Method for Communication-Efficient Federated Learning" (arXiv 2108.04755), after PAGE
(arXiv 2008.10898)::

    with probability p, and in round 0, all clients:
        down: x;  up: u_i = ∇f_i(x; large batch)
    else a cohort:
        down: x, x⁻, g
        g_i ← g + ∇f_i(x; large batch) − ∇f_i(x⁻; the same);   y ← x
        for k = 0 … K − 1:  if k > 0:  g_i ← g_i + ∇f_i(y; ξ_k) − ∇f_i(y⁻; ξ_k)       the same samples at both points
                            y⁻ ← y;  y ← y − η_l g_i
        up: u_i = (x − y) / (η_l K), the mean direction
    server:  g ← mean u_i;   x⁻ ← x;   x ← x − η_s η_l K g

So every round goes as far as K local steps, and p = 1 is large-batch gradient descent with steps of η_s η_l K; K = 1 is PAGE over
clients. The paper's text was not at hand: rounds and the large batch of the first difference are as in the code of FedAMD's
authors (HarliWu/FedAMD, algo/fedpage.py), whose large steps are not in proportion to K.

What goes wrong in g, and noise of the links with it, stays there until the next round of everybody. It costs N large batches; p
about S / (N + S) makes that as much, on average, as what the cohorts send.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain import random
from disttrain.federated.algorithm import Algorithm, AlgorithmConfig, Replies, Reply, Vectors, federated_algorithms
from disttrain.federated.work import Plan, Work


@dataclass(frozen=True)
class FedPAGE(Algorithm):
    """Large gradients by chance, recursive ones in between.

    Args:
        probability: p, of a round of everybody.
        server_lr: η_s.

    Raises:
        ValueError: unless p is in (0, 1].
    """

    probability: float = 0.2
    server_lr: float = 1.0
    clips: ClassVar[bool] = False
    large_batches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability must be greater than 0 and at most 1, got {self.probability}")

    def init(self, x: Tensor) -> Vectors:
        """The model, the one before, and the last direction."""
        return {"x": x.clone(), "before": x.clone(), "g": torch.zeros_like(x)}

    def broadcast(self, server: Vectors) -> Vectors:
        """All of it."""
        return dict(server)

    def bytes_down(self, message: Vectors, plan: Plan, clients: Tensor) -> Tensor:
        """Where all send a large gradient, the model is enough."""
        whole = super().bytes_down(message, plan, clients)
        return whole // len(message) if self.with_everybody(plan) else whole

    def with_everybody(self, plan: Plan) -> bool:
        """In round 0, then by one coin of the server."""
        keys = torch.tensor([random.key(plan.seed, random.Stream.COIN, plan.round)])
        return plan.round == 0 or float(random.uniform(keys, 1)) < self.probability

    def client(self, message: Vectors, state: Vectors, work: Work) -> tuple[Reply, Vectors]:
        """A large gradient, or the mean direction of K recursive steps."""
        if self.with_everybody(work.plan):
            return {"direction": work.send(work.large_gradient(message["x"]))}, {}
        x, before = message["x"], message["before"]
        g = message["g"] + (work.large_gradient(x) - work.large_gradient(before))
        y, total = x, g
        for step in range(1, work.plan.steps):
            before, y = y, y - work.plan.lr * g
            g = g + (work.gradient(y, step) - work.gradient(before, step))
            total = total + g
        return {"direction": work.send(total / work.plan.steps)}, {}

    def aggregate(self, server: Vectors, replies: Replies, plan: Plan) -> Vectors:
        """Along the mean direction of those that answered."""
        x, g = server["x"], replies["direction"].mean
        return {"x": x - self.server_lr * plan.lr * plan.steps * g, "before": x, "g": g}


@federated_algorithms.register
class FedPAGEConfig(AlgorithmConfig):
    """Large gradients of all clients by chance, recursive local steps of a cohort in between (arXiv 2108.04755)."""

    name: Literal["fedpage"] = "fedpage"
    probability: float = Field(0.2, gt=0, le=1)
    """p, of a round in which all clients are asked for a large gradient; 1: always, which is gradient descent."""
    server_lr: float = Field(1.0, gt=0)
    """η_s."""

    def build(self) -> FedPAGE:
        """The algorithm itself."""
        return FedPAGE(self.probability, self.server_lr)
