"""FedAvg and what differs from it by one line: FedProx in the local step, FedAvgM and FedOpt at the server.

"Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv 1602.05629), algorithm 1; "Federated
Optimization in Heterogeneous Networks" (arXiv 1812.06127), algorithm 2; for the server's rules see `server_optimizers.py`::

    down: x
    client:  y ← x;  K times  y ← y − η_l (∇f_i(y; ξ) + μ (y − x));  up: Δ_i = y − x
    server:  Δ̄ = Σ w_i Δ_i / Σ w_i over those that answered;  x ← server step(Δ̄)

w_i is the client's number of samples, or 1. A client that does not answer is missing from both sums. FedProx's paper lets the
local problem be solved inexactly by any means; here it is K steps, as everywhere. μ = 0 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from disttrain.federated.algorithm import Algorithm, AlgorithmConfig, Replies, Reply, Vectors, federated_algorithms, rows_of
from disttrain.federated.algorithms.server_optimizers import ServerOptimizer
from disttrain.federated.local_steps import descend
from disttrain.federated.work import Plan, Work

Weighting = Literal["samples", "uniform"]


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Averages the clients' moves.

    Args:
        mu: μ, how strongly local steps are pulled back to the server's model.
        optimizer: the server's step.
        weighting: whether a client counts by its samples, or all alike.
    """

    mu: float = 0.0
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    weighting: Weighting = "samples"
    plain_steps: ClassVar[bool] = False

    def init(self, x: Tensor) -> Vectors:
        """The model, and what the server's optimizer keeps."""
        return {"x": x.clone(), **self.optimizer.init(x)}

    def client(self, message: Vectors, state: Vectors, work: Work) -> tuple[Reply, Vectors]:
        """Local steps, and how far they have gone."""
        x = rows_of(message["x"], len(work))
        y = descend(x, work, (lambda gradient, y: gradient + self.mu * (y - x)) if self.mu else None)
        weights = work.sizes if self.weighting == "samples" else None
        return {"delta": work.send(y - x, weights=weights)}, {}

    def aggregate(self, server: Vectors, replies: Replies, plan: Plan) -> Vectors:
        """One step of the server's optimizer."""
        return self.optimizer.step(server, replies["delta"].mean)


@federated_algorithms.register
class FedAvgConfig(AlgorithmConfig):
    """The mean of the clients' models (arXiv 1602.05629)."""

    name: Literal["fedavg"] = "fedavg"
    server_lr: float = Field(1.0, gt=0)
    """η: 1 takes the mean as it is."""
    weighting: Weighting = "samples"
    """samples: clients count by how many samples they have; uniform: all alike."""

    def build(self) -> FedAvg:
        """The algorithm itself."""
        return FedAvg(optimizer=ServerOptimizer("sgd", self.server_lr), weighting=self.weighting)


@federated_algorithms.register
class FedProxConfig(FedAvgConfig):
    """FedAvg with local steps that are pulled back to the server's model (arXiv 1812.06127)."""

    name: Literal["fedprox"] = "fedprox"  # type: ignore[assignment]
    mu: float = Field(0.1, ge=0)
    """μ; the paper's are 0.001 to 1, and 0 is FedAvg."""

    def build(self) -> FedAvg:
        """The algorithm itself."""
        return FedAvg(self.mu, ServerOptimizer("sgd", self.server_lr), self.weighting)


@federated_algorithms.register
class FedAvgMConfig(FedAvgConfig):
    """FedAvg with heavy-ball momentum at the server (arXiv 1909.06335)."""

    name: Literal["fedavgm"] = "fedavgm"  # type: ignore[assignment]
    beta1: float = Field(0.9, ge=0, lt=1)
    """β₁; 0 is FedAvg."""

    def build(self) -> FedAvg:
        """The algorithm itself."""
        return FedAvg(optimizer=ServerOptimizer("momentum", self.server_lr, self.beta1), weighting=self.weighting)


class FedOptConfig(FedAvgConfig):
    """FedAvg with an adaptive step at the server (arXiv 2003.00295)."""

    server_lr: float = Field(0.03, gt=0)
    """η, in the unit of parameters: about how far a coordinate moves in a round."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """β₁, of the mean move."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """β₂, of its square; of no effect in fedadagrad."""
    tau: float = Field(1e-3, gt=0)
    """τ, below which coordinates no longer differ."""
    rule: ClassVar[Literal["adam", "adagrad", "yogi"]] = "adam"

    def build(self) -> FedAvg:
        """The algorithm itself."""
        optimizer = ServerOptimizer(self.rule, self.server_lr, self.beta1, self.beta2, self.tau)
        return FedAvg(optimizer=optimizer, weighting=self.weighting)


@federated_algorithms.register
class FedAdamConfig(FedOptConfig):
    """FedAvg with Adam at the server (arXiv 2003.00295)."""

    name: Literal["fedadam"] = "fedadam"  # type: ignore[assignment]


@federated_algorithms.register
class FedAdagradConfig(FedOptConfig):
    """FedAvg with Adagrad at the server (arXiv 2003.00295)."""

    name: Literal["fedadagrad"] = "fedadagrad"  # type: ignore[assignment]
    rule: ClassVar[Literal["adam", "adagrad", "yogi"]] = "adagrad"


@federated_algorithms.register
class FedYogiConfig(FedOptConfig):
    """FedAvg with Yogi at the server (arXiv 2003.00295)."""

    name: Literal["fedyogi"] = "fedyogi"  # type: ignore[assignment]
    rule: ClassVar[Literal["adam", "adagrad", "yogi"]] = "yogi"
