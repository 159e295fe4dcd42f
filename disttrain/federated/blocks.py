"""The unit of work: a block of clients, computed anywhere, summed in one order.

A round's clients are cut into blocks of a fixed size, in the cohort's order. Inside a block replies are added client by client,
then block sums in the order of the blocks. So the result has the same bits whoever computes which block, and when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disttrain.federated.algorithm import Algorithm, Replies, Reply, Sum, Vectors
from disttrain.federated.work import Ledger, Part, Plan, Problem, Work


@dataclass(frozen=True)
class Block:
    """What is to be computed: nothing else is needed, and nothing in it is changed.

    Args:
        clients: int64 ``[L]``, in the cohort's order.
        message: of the server.
        state: of these clients, ``[L, d]`` each.
        plan: of the round.
    """

    clients: Tensor
    message: Vectors
    state: Vectors
    plan: Plan


@dataclass(frozen=True)
class BlockResult:
    """What comes back.

    Args:
        clients: of the block.
        accepted: booleans ``[L]``: whose reply was finite; the others are not in the sums.
        sums: of each vector of the replies.
        state: each client's new one, not yet committed.
        bytes_up: int64 ``[L]``.
        ledger: what the clients have spent.
    """

    clients: Tensor
    accepted: Tensor
    sums: Mapping[str, Sum]
    state: Vectors
    bytes_up: Tensor
    ledger: Ledger


def blocks_of(clients: Tensor, size: int) -> list[Tensor]:
    """Clients, in their order, in blocks of ``size``; the last may be smaller."""
    return list(clients.split(size)) if len(clients) else []


def compute(algorithm: Algorithm, problem: Problem, block: Block) -> tuple[Reply, Vectors, Ledger]:
    """All clients of the block at once."""
    work = Work.of_block(problem, block.plan, block.clients)
    reply, state = algorithm.client(work.receive(block.message), block.state, work)
    return reply, state, work.ledger


def reduce(block: Block, reply: Reply, state: Vectors, ledger: Ledger) -> BlockResult:
    """Add the replies up, client by client, but for those that are not finite."""
    accepted = torch.ones(len(block.clients), dtype=torch.bool)
    for part in reply.values():
        accepted &= all_finite(part.values) | (part.weights == 0)
    bytes_up = sum((part.num_bytes for part in reply.values()), torch.zeros_like(block.clients))
    sums = {name: _sum(part, accepted) for name, part in reply.items()}
    return BlockResult(block.clients, accepted, sums, state, bytes_up, ledger)


def all_finite(rows: Tensor) -> Tensor:
    """Which rows ``[L, d]`` have no inf and no NaN, which their extremes would show; 20 times as fast as isfinite().all()."""
    return rows.amax(-1).isfinite() & rows.amin(-1).isfinite()


def _sum(part: Part, accepted: Tensor) -> Sum:
    total, weights = torch.zeros_like(part.values[0]), (part.weights * accepted).tolist()
    for row, weight in zip(part.values, weights, strict=True):
        if weight:
            total.add_(row, alpha=weight)
    return Sum(total, sum(weights))


def total_of(results: Sequence[BlockResult]) -> Replies:
    """The sums of all blocks, added in their order."""
    count = int(sum(int(result.accepted.sum()) for result in results))
    first, *others = results
    sums = {}
    for name, one in first.sums.items():
        vector, weight = one.vector.clone(), one.weight
        for result in others:
            vector += result.sums[name].vector
            weight += result.sums[name].weight
        sums[name] = Sum(vector, weight)
    return Replies(sums, count)
