"""FedAMD: some clients anchor, the others mine.

"Anchor Sampling for Federated Learning with Partial Client Participation" (arXiv 2206.05891), algorithm 1::

    cache v_i of every client at the server, ḡ = mean of all N of them, stale ones included
    down: x, and ḡ to miners
    anchor:  up: v_i' = ∇f_i(x; large batch), which only renews the cache
    miner:   y ← x, g ← ḡ;  for k = 0 … K − 1:  g ← g + ∇f_i(y_k; ξ_k) − ∇f_i(y_{k−1}; ξ_k)     the same samples at both points
                                                y_{k+1} = y_k − η_l g                            y_{−1} = y_0: k = 0 adds nothing
             up: Δ_i = y_K − x
    server:  x ← x + η_s · mean of the miners' Δ_i, if there is any;  ḡ ← ḡ + (1/N) Σ (v_i' − v_i)

Anchors of a round count from the next one on. Where all anchor, x stays where it is: it is not a step of large-batch descent.
That is what alternating rounds of anchors and of miners with K = 1 and everybody amount to.

*Sequential* (algorithm 1 with p ∈ {0, 1}): all anchor in every ``period``-th round, and mine in the others. *Constant*: every
client tosses a coin in every round. p = 0 would never renew ḡ, and diverges; p = 1 never moves.

Round 0 is with all N clients, who all anchor: the paper starts from v_i = ∇f_i(x_0). It costs a large batch and d floats of each
client, and is counted. A client that does not answer leaves its cache as it was.

With ``clip_norm`` it is the step that is clipped, y ← y − η_l clip(g), as in SPIDER (arXiv 1807.01695), not the gradients of
which g is made: differences of clipped gradients would be no bound on g, and no estimate of ∇f. Over noisy links the server's
caches are what it has received.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain import random
from disttrain.federated.algorithm import Algorithm, AlgorithmConfig, Replies, Reply, Vectors, federated_algorithms, rows_of
from disttrain.federated.work import Plan, Work


@dataclass(frozen=True)
class FedAMD(Algorithm):
    """Anchors and miners.

    Args:
        probability: p, with which each client anchors; None: in turns, see ``period``.
        period: τ, rounds from one in which all anchor to the next, where p is None.
        server_lr: η_s.

    Raises:
        ValueError: unless p is in [0, 1], or the period at least 2.
    """

    probability: float | None = None
    period: int = 2
    server_lr: float = 1.0
    client_vectors: ClassVar[tuple[str, ...]] = ("cache",)
    meets_everybody: ClassVar[bool] = True
    large_batches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, got {self.probability}")
        if self.period < 2:
            raise ValueError(f"period must be at least 2, or nobody would ever mine, got {self.period}")

    def init(self, x: Tensor) -> Vectors:
        """The model, and ḡ = 0."""
        return {"x": x.clone(), "mean_cache": torch.zeros_like(x)}

    def broadcast(self, server: Vectors) -> Vectors:
        """The model and ḡ."""
        return {"x": server["x"], "mean_cache": server["mean_cache"]}

    def bytes_down(self, message: Vectors, plan: Plan, clients: Tensor) -> Tensor:
        """Anchors need no ḡ."""
        return super().bytes_down(message, plan, clients) // (1 + self.anchors(plan, clients).long())

    def anchors(self, plan: Plan, clients: Tensor) -> Tensor:
        """Which clients anchor in the round: booleans ``[L]``."""
        if plan.round == 0 or self.probability is None:
            return torch.full(clients.shape, plan.round % self.period == 0)
        keys = random.key(plan.seed, random.Stream.COIN, plan.round, clients)
        return random.uniform(keys, 1)[:, 0] < self.probability

    def client(self, message: Vectors, state: Vectors, work: Work) -> tuple[Reply, Vectors]:
        """Large gradients of some, local steps of the others."""
        x, anchor = rows_of(message["x"], len(work)), self.anchors(work.plan, work.clients)
        cache, delta = state["cache"].clone(), torch.zeros_like(x)
        if anchor.any():
            cache[anchor] = work.among(anchor).large_gradient(x[anchor])
        if not anchor.all():
            delta[~anchor] = mine(x[~anchor], message["mean_cache"][~anchor], work.among(~anchor))
        renewed = work.send(cache, who=anchor)
        cache = torch.where(anchor[:, None], renewed.values, state["cache"])  # as the server has it
        change = replace(renewed, values=cache - state["cache"])
        return {"change": change, "delta": work.send(delta, who=~anchor)}, {"cache": cache}

    def aggregate(self, server: Vectors, replies: Replies, plan: Plan) -> Vectors:
        """The miners' mean move, and the anchors' share of ḡ."""
        x, delta = server["x"], replies["delta"]
        return {
            "x": x + self.server_lr * delta.mean if delta.weight else x,
            "mean_cache": server["mean_cache"] + replies["change"].vector / plan.num_clients,
        }


def mine(x: Tensor, direction: Tensor, work: Work) -> Tensor:
    """K recursive steps from ``x``, the first along ``direction``; how far they have gone; all of them ``[L, d]``."""
    before, y, g = x, x, direction
    for step in range(work.plan.steps):
        if step:  # at step 0 both points are x, and the difference is zero
            g = g + (work.gradient(y, step, clip=False) - work.gradient(before, step, clip=False))
        before, y = y, y - work.plan.lr * work.clipped(g)
    return y - x


def best_probability(num_clients: int, cohort: int) -> float:
    """The p that makes 1 / (1 − p^a) + 2m / (a p √(1 − p^a)) least, for a of m clients in a round: the authors' code, "opta"."""
    m, a = num_clients, cohort
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)[1:-1]
    rest = 1 - grid**a
    return float(grid[(1 / rest + 2 * m / (a * grid * rest.sqrt())).argmin()])


def best_probability_closed(cohort: int) -> float:
    """(2 / (a + 2))^(1/a), "optc": where p² (1 − p^a) is largest, or nearly so. Nobody mines then in 2 / (a + 2) of rounds."""
    return float((2 / (cohort + 2)) ** (1 / cohort))


def conservative_probability(num_clients: int, cohort: int) -> float:
    """√(4 r² + 2 r) − 2 r with r = m / a, "optb": a little less than one half."""
    r = num_clients / cohort
    return sqrt(4 * r * r + 2 * r) - 2 * r


@federated_algorithms.register
class FedAMDConfig(AlgorithmConfig):
    """Anchors renew large-batch gradients, miners follow their mean: by a coin of each client (arXiv 2206.05891)."""

    name: Literal["fedamd"] = "fedamd"
    probability: float = Field(0.5, gt=0, lt=1)
    """p, with which a client anchors."""
    server_lr: float = Field(1.0, gt=0)
    """η_s."""

    def build(self) -> FedAMD:
        """The algorithm itself."""
        return FedAMD(self.probability, server_lr=self.server_lr)


@federated_algorithms.register
class FedAMDSequentialConfig(AlgorithmConfig):
    """FedAMD with all clients of a round doing the same: they anchor in every ``period``-th round (arXiv 2206.05891)."""

    name: Literal["fedamd_sequential"] = "fedamd_sequential"
    period: int = Field(2, ge=2)
    """τ; 2: in every other round."""
    server_lr: float = Field(1.0, gt=0)
    """η_s."""

    def build(self) -> FedAMD:
        """The algorithm itself."""
        return FedAMD(None, self.period, self.server_lr)
