"""MIFA: the server remembers what each client last had to say.

"Fast Federated Learning in the Presence of Arbitrary Device Unavailability" (arXiv 2106.04159), algorithm 1::

    down: x
    client:  y ← x;  K times  y ← y − η_l ∇f_i(y; ξ);   up: G_i = (x − y) / η_l
    server:  G_i ← what arrived, of the others the last;   x ← x − η_s η_l · (1/N) Σ over all N of G_i

A client that does not answer is represented by its last G_i. Every client is needed once before the first step, so round 0 is
with all of them; one that is lost even then counts as zero until it answers. N · d floats at the server, which
are what it has received, noise of the links included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain.federated.algorithm import Algorithm, AlgorithmConfig, Replies, Reply, Vectors, federated_algorithms, rows_of
from disttrain.federated.local_steps import sum_of_directions
from disttrain.federated.work import Plan, Work


@dataclass(frozen=True)
class MIFA(Algorithm):
    """Averages over all clients, with last known moves.

    Args:
        server_lr: η_s.
    """

    server_lr: float = 1.0
    client_vectors: ClassVar[tuple[str, ...]] = ("memory",)
    meets_everybody: ClassVar[bool] = True

    def init(self, x: Tensor) -> Vectors:
        """The model, and nothing remembered."""
        return {"x": x.clone(), "mean_memory": torch.zeros_like(x)}

    def client(self, message: Vectors, state: Vectors, work: Work) -> tuple[Reply, Vectors]:
        """Local steps, whose sum of gradients is sent."""
        total = sum_of_directions(rows_of(message["x"], len(work)), work)
        sent = work.send(total)
        return {"change": replace(sent, values=sent.values - state["memory"])}, {"memory": sent.values}  # as the server has it

    def aggregate(self, server: Vectors, replies: Replies, plan: Plan) -> Vectors:
        """Along the mean of all memories, those just renewed among them."""
        mean = server["mean_memory"] + replies["change"].vector / plan.num_clients
        return {"x": server["x"] - self.server_lr * plan.lr * mean, "mean_memory": mean}


@federated_algorithms.register
class MIFAConfig(AlgorithmConfig):
    """FedAvg in which clients that do not take part are represented by their last answer (arXiv 2106.04159)."""

    name: Literal["mifa"] = "mifa"
    server_lr: float = Field(1.0, gt=0)
    """η_s."""

    def build(self) -> MIFA:
        """The algorithm itself."""
        return MIFA(self.server_lr)
