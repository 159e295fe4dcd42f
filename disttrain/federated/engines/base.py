"""The seam of an engine: blocks in, their results out, in the blocks' order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from disttrain.federated.blocks import Block, BlockResult


class EngineFailed(RuntimeError):
    """No more can be computed; the message says why, in a line."""


class Engine(Protocol):
    """Computes blocks, which are independent of each other."""

    def run(self, blocks: Sequence[Block]) -> list[BlockResult | None]:
        """The results in the order of the blocks; None for a block that was lost, whose clients then count as lost."""
        ...
