"""The contract of a federated algorithm: three pure functions over flat vectors.

::

    message          = broadcast(server)                           what clients are sent
    reply, state'    = client(message, state, work)                the clients of one block, as rows [L, d]
    server'          = aggregate(server, replies, plan)            from sums over all clients that answered

A server is a few vectors ``[d]`` by name, one of which, ``x``, is the model; a client's state is a few vectors of its own. The
algorithm knows neither who computes which block nor what becomes of clients that do not answer: it is given the sums of what
arrived. A client's new state is stored only when the server has taken its reply (two-phase commit), else sums over clients that
the server keeps, such as SCAFFOLD's c = mean c_i, would no longer be what they are meant to be.

A client's state may also hold what the *server* keeps of a client (the caches of FedAMD, the memory of MIFA): it is stored in the
same place, and nothing is sent for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from disttrain.component import ComponentConfig, Registry
from disttrain.federated.work import Part, Plan, Work

Vectors: TypeAlias = Mapping[str, Tensor]
Reply: TypeAlias = Mapping[str, Part]


@dataclass(frozen=True)
class Sum:
    """A weighted sum over clients.

    Args:
        vector: ``[d]``.
        weight: the sum of the weights.
    """

    vector: Tensor
    weight: float

    @property
    def mean(self) -> Tensor:
        """The weighted mean ``[d]``; only where somebody has sent something."""
        return self.vector / self.weight


@dataclass(frozen=True)
class Replies:
    """What the server gets in a round.

    Args:
        sums: of each vector of the replies; one that nobody has sent has weight 0.
        count: clients that answered, at least one.
    """

    sums: Mapping[str, Sum]
    count: int

    def __getitem__(self, name: str) -> Sum:
        return self.sums[name]


class Algorithm:
    """Base of all algorithms; frozen, without state of its own."""

    client_vectors: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors that are kept for each client, all zero at first."""
    plain_steps: ClassVar[bool] = True
    """Whether local steps must be plain SGD: with momentum or weight decay, what a client has moved is no longer the sum of its
    gradients, which the algorithm counts on."""
    clips: ClassVar[bool] = True
    """Whether gradients or steps can be clipped."""
    adds_up: ClassVar[bool] = False
    """Whether the server adds up for ever what clients send, and each client the same for itself: noise on the way up would add
    up, too, at the server alone, and what the two keep would part."""
    large_batches: ClassVar[bool] = False
    """Whether clients compute gradients on large batches, too."""
    meets_everybody: ClassVar[bool] = False
    """Whether round 0 is with all clients: the algorithm needs each of them once before it can do without most of them."""

    def init(self, x: Tensor) -> Vectors:
        """The server's vectors, given the initial model ``[d]``."""
        return {"x": x.clone()}

    def client_numbers(self, sizes: Tensor) -> Vectors:
        """What else is kept for each client, by name: a few numbers ``[N, w]`` as they are at first.

        Args:
            sizes: int64 ``[N]``, each client's samples.
        """
        return {}

    def broadcast(self, server: Vectors) -> Vectors:
        """What is sent to every client of the cohort; by default the model."""
        return {"x": server["x"]}

    def client(self, message: Vectors, state: Vectors, work: Work) -> tuple[Reply, Vectors]:
        """One round of a block's clients.

        Args:
            message: what arrived at these clients, ``[L, d]`` each, not changed.
            state: of these clients, ``[L, d]`` each, not changed.
            work: their data.

        Returns:
            the reply, and the state that each client will have if its reply is accepted.
        """
        raise NotImplementedError(f"{type(self).__name__} must define client()")

    def aggregate(self, server: Vectors, replies: Replies, plan: Plan) -> Vectors:
        """The server's new vectors; the old ones are not changed."""
        raise NotImplementedError(f"{type(self).__name__} must define aggregate()")

    def with_everybody(self, plan: Plan) -> bool:
        """Whether all clients are asked in this round, rather than a cohort."""
        return self.meets_everybody and plan.round == 0

    def check(self, plan: Plan, name: str | None = None) -> None:
        """Raise ValueError if the algorithm, called ``name``, is not for such rounds."""
        name = type(self).__name__ if name is None else name
        given = [f"{key}={value:g}" for key in ("momentum", "weight_decay") if (value := getattr(plan, key))]
        if given and self.plain_steps:
            raise ValueError(
                f"{name} takes a client's move for the sum of its gradients, which it is not with {' and '.join(given)}: "
                "it needs plain local steps. Set 0, or take fedavg or one of its kin"
            )
        if plan.clip_norm is not None and not self.clips:
            raise ValueError(
                f"{name} adds differences of gradients up from round to round, which they no longer are with "
                f"clip_norm={plan.clip_norm:g}: set null, and a smaller lr"
            )
        if plan.noise_up and self.adds_up:
            raise ValueError(
                f"{name} adds up what clients send, at the server and at each client, and noise.up={plan.noise_up:g} would "
                "add up at the server alone: set 0 (noise.down is fine), or take mifa or fedavg"
            )

    def warning(self, plan: Plan) -> str:
        """What is worth saying before such rounds are made, if anything is."""
        return ""

    def bytes_down(self, message: Vectors, plan: Plan, clients: Tensor) -> Tensor:
        """What each client is sent, int64 ``[L]``; by default the whole message."""
        one = sum(each.numel() * each.element_size() for each in message.values())
        return torch.full_like(clients, one)


class AlgorithmConfig(ComponentConfig):
    """Base of all algorithms' configs."""

    def build(self) -> Algorithm:
        """The algorithm itself."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")


federated_algorithms: Registry[AlgorithmConfig] = Registry("federated.algorithm", default="fedavg")


def rows_of(x: Tensor, num_clients: int) -> Tensor:
    """A vector ``[d]`` as a fresh row for each client, ``[L, d]``: local steps must not write into the message."""
    return x.expand(num_clients, -1).clone()
