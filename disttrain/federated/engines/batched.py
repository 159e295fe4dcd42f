"""All clients of a block, or of several, as rows of tensors, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from disttrain.federated.algorithm import Algorithm
from disttrain.federated.blocks import Block, BlockResult, compute, reduce
from disttrain.federated.work import Part, Problem


@dataclass(frozen=True)
class BatchedEngine:
    """Fastest for small models, where a step is mostly torch's overhead: it is paid once for all clients of a group.

    What a client's row gives does not depend on the others', so neither do sums on which blocks are computed together.

    Args:
        algorithm: what they do.
        problem: whose losses.
        together: blocks are computed together up to so many clients; a block that is larger alone.
    """

    algorithm: Algorithm
    problem: Problem
    together: int = 0

    def run(self, blocks: Sequence[Block]) -> list[BlockResult | None]:
        """All results."""
        return [result for group in self._groups(blocks) for result in self._run(group)]

    def _groups(self, blocks: Sequence[Block]) -> Iterator[list[Block]]:
        """The blocks of a round in their order, as many at a time as may be."""
        group: list[Block] = []
        for block in blocks:
            if group and sum(len(each.clients) for each in [*group, block]) > self.together:
                yield group
                group = []
            group.append(block)
        if group:
            yield group

    def _run(self, group: list[Block]) -> list[BlockResult]:
        if len(group) == 1:
            return [reduce(group[0], *compute(self.algorithm, self.problem, group[0]))]
        reply, state, ledger = compute(self.algorithm, self.problem, _joined(group))
        ends = list(accumulate(len(block.clients) for block in group))
        return [
            reduce(
                block,
                {name: Part(each.values[rows], each.weights[rows], each.num_bytes[rows]) for name, each in reply.items()},
                {name: each[rows] for name, each in state.items()},
                ledger.part(rows),
            )
            for block, rows in zip(group, map(slice, [0, *ends], ends), strict=False)
        ]


def _joined(group: Sequence[Block]) -> Block:
    """Blocks of one round as one."""
    first = group[0]
    states: Mapping[str, Tensor] = {name: torch.cat([block.state[name] for block in group]) for name in first.state}
    return Block(torch.cat([block.clients for block in group]), first.message, states, first.plan)
