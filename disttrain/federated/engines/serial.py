"""Client after client, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from disttrain.federated.algorithm import Algorithm, Reply, Vectors
from disttrain.federated.blocks import Block, BlockResult, compute, reduce
from disttrain.federated.work import Ledger, Part, Problem


@dataclass(frozen=True)
class SerialEngine:
    """Fastest for models whose one step is long: a client's rows then fit the caches, and vmap has nothing to gain."""

    algorithm: Algorithm
    problem: Problem

    def run(self, blocks: Sequence[Block]) -> list[BlockResult | None]:
        """All results."""
        return [self._run(block) for block in blocks]

    def _run(self, block: Block) -> BlockResult:
        singles = [compute(self.algorithm, self.problem, single) for single in _singles(block)]
        replies, states, ledgers = zip(*singles, strict=True)
        return reduce(block, _stack(replies), _cat(states), Ledger.joined(ledgers))


def _singles(block: Block) -> list[Block]:
    rows = [slice(row, row + 1) for row in range(len(block.clients))]
    return [
        Block(block.clients[row], block.message, {name: each[row] for name, each in block.state.items()}, block.plan)
        for row in rows
    ]


def _stack(replies: Sequence[Reply]) -> Reply:
    return {
        name: Part(
            torch.cat([reply[name].values for reply in replies]),
            torch.cat([reply[name].weights for reply in replies]),
            torch.cat([reply[name].num_bytes for reply in replies]),
        )
        for name in replies[0]
    }


def _cat(states: Sequence[Vectors]) -> Vectors:
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}
