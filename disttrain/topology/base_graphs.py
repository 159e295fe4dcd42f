"""Base-(k+1) graphs: the exact mean after finitely many rounds, for every number of workers, with at most k peers in a round.

Takezawa, Sato, Bao, Niwa and Yamada, "Beyond Exponential Graph: Communication-Efficient Topologies for Decentralized Learning via
Finite-time Convergence", arXiv 2305.11420. Three constructions, each from the one before:

1. *Hyper-hypercube*, where n's prime factors are all ≤ k + 1: write n = f₁ f₂ ⋯ with the fewest factors ≤ k + 1, number the
   workers in that mixed radix, and let round r take the mean of those that differ in digit r only.
2. *Simple base graph*, for every n: write n in base k + 1 and cut the workers into blocks V₁, V₂, … of a_l (k+1)^(p_l), larger
   ones first, each of a_l sub-blocks of (k+1)^(p_l).

   - First, hyper-hypercubes inside all blocks: everybody has its block's mean.
   - Then V₁, V₂, … in turn meet all that come after them. Each of those R workers takes the mean of everybody from here on: it
     moves by ρ = |V_l| / (|V_l| + R) towards one fresh peer in each of V_l's sub-blocks, in shares ρ/a_l. That leaves every
     sub-block of V_l with the right sum, in unequal parts. Those of V_l that met nobody average among themselves.
   - Last, hyper-hypercubes inside the sub-blocks, which a block begins as soon as it has met the others.

   For k = 1, n = 5: two rounds on {0, 1, 2, 3}; then 4 meets 3 with weight 4/5, beside the pair (0, 1); two more on {0, 1, 2, 3}.
3. *Base graph*: with n = q·r, where q holds all prime factors ≤ k + 1: simple base graphs inside q blocks of r, then
   hyper-hypercubes across the blocks. Of this and 2, the shorter.

Blocks that are done before others go through their rounds again: no mean changes, and what training set apart comes together.
At n = 2^p and k = 1 this is the one-peer hypercube.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
from pydantic import Field

from disttrain.topology.base import Topology, TopologyConfig, check_workers, periodic, topologies
from disttrain.topology.mixing import Ints, Links, both_ways, together

Rounds: TypeAlias = list[Links]


def base_graph(n: int, k: int = 1) -> Topology:
    """The base-(k+1) graph: symmetric, at most k peers in a round, exact after a period of at most 2 log_(k+1) n + 2 rounds.

    Args:
        n: workers.
        k: the most peers of a worker in one round; more make fewer rounds.

    Raises:
        ValueError: if k is less than 1.
    """
    check_workers("base_graph", n)
    if k < 1:
        raise ValueError(f"base_graph needs k of at least 1, the most peers of a worker in a round, got {k}")
    workers = np.arange(n)
    simple, composed = simple_base_rounds(workers, k), composed_rounds(workers, k)
    return periodic("base_graph", n, *(simple if len(simple) <= len(composed) else composed))


def composed_rounds(workers: Ints, k: int) -> Rounds:
    """Construction 3: simple base graphs in the rows of a ``[q, r]`` grid of workers, then hyper-hypercubes in its columns."""
    blocks = workers.reshape(smooth_part(len(workers), k + 1), -1)
    inside = side_by_side([simple_base_rounds(block, k) for block in blocks])
    return inside + side_by_side([hyper_hypercube_rounds(column, k) for column in blocks.T])


def simple_base_rounds(workers: Ints, k: int) -> Rounds:
    """Construction 2."""
    if smooth_part(len(workers), k + 1) == len(workers):
        return hyper_hypercube_rounds(workers, k)
    blocks = blocks_by_digit(workers, k + 1)
    first = side_by_side([hyper_hypercube_rounds(block.ravel(), k) for block in blocks])
    last = [side_by_side([hyper_hypercube_rounds(part, k) for part in block]) for block in blocks]
    return first + [_meeting_round(blocks, last, t, k) for t in range(1 + len(last[0]))]


def _meeting_round(blocks: Sequence[Ints], last: Sequence[Rounds], t: int, k: int) -> Links:
    """Block t meets those after it, and blocks before it go through their ``last`` rounds; the final block has nobody to meet."""
    parts = []
    for place, block in enumerate(blocks[: t + 1]):
        if place == t < len(blocks) - 1:
            parts.append(meeting(block, np.concatenate([later.ravel() for later in blocks[t + 1 :]]), k))
        elif last[place]:
            parts.append(last[place][(t - place - (place < len(blocks) - 1)) % len(last[place])])
    return together(parts)


def meeting(block: Ints, later: Ints, k: int) -> Links:
    """Every later worker ``[R]`` meets one fresh worker in each sub-block of ``block [a, s]``, R < s; what is left averages."""
    a, met = len(block), len(later)
    share = block.size / (block.size + met)
    fresh, rest = block[:, -met:], block[:, :-met].ravel()
    pairs = np.stack([np.tile(later, a), fresh.ravel()], 1)
    whole = len(rest) // (k + 1) * (k + 1)
    groups = [rest[:whole].reshape(-1, k + 1), rest[None, whole:]]
    return together([both_ways(pairs, share / a), *(means(each) for each in groups if each.size)])


def hyper_hypercube_rounds(workers: Ints, k: int) -> Rounds:
    """Construction 1; of one worker, no rounds."""
    factors = fewest_factors(len(workers), k + 1)
    assert factors is not None, "callers give a number whose prime factors are at most k + 1"
    grid = workers.reshape(factors)
    return [means(np.moveaxis(grid, axis, -1).reshape(-1, factors[axis])) for axis in reversed(range(len(factors)))]


def means(groups: Ints) -> Links:
    """Every row of ``groups [g, f]`` takes its mean."""
    one, other = np.triu_indices(groups.shape[1], 1)
    pairs = np.stack([groups[:, one].ravel(), groups[:, other].ravel()], 1)
    return both_ways(pairs, 1 / groups.shape[1])


def side_by_side(sequences: Sequence[Rounds]) -> Rounds:
    """Rounds of different workers at once, as many as the longest sequence has; the others begin anew meanwhile."""
    longest = max(len(sequence) for sequence in sequences)
    return [together(each[t % len(each)] for each in sequences if each) for t in range(longest)]


def blocks_by_digit(workers: Ints, base: int) -> list[Ints]:
    """Cut the workers by the digits of their number: for each digit a > 0 at place p, ``[a, base^p]``; larger places first."""
    blocks, start = [], 0
    for place in reversed(range(len(workers).bit_length())):
        digit = len(workers) // base**place % base
        if digit:
            blocks.append(workers[start : start + digit * base**place].reshape(digit, -1))
            start += digit * base**place
    return blocks


def smooth_part(n: int, most: int) -> int:
    """The largest divisor of n whose prime factors are all at most ``most``."""
    part = 1
    for factor in range(2, min(most, n) + 1):
        while n % factor == 0:
            n, part = n // factor, part * factor
    return part


@cache
def fewest_factors(n: int, most: int) -> tuple[int, ...] | None:
    """n as a product of as few factors in 2 … ``most`` as can be, largest first; none for 1; None if there is no such product."""
    if n == 1:
        return ()
    best: tuple[int, ...] | None = None
    for factor in range(min(most, n), 1, -1):
        others = fewest_factors(n // factor, factor) if n % factor == 0 else None
        if others is not None and (best is None or 1 + len(others) < len(best)):
            best = (factor, *others)
    return best


@topologies.register
class BaseGraphConfig(TopologyConfig):
    """The exact mean after finitely many rounds, for every number of workers."""

    name: Literal["base_graph"] = "base_graph"
    k: int = Field(1, ge=1)
    """The most peers of a worker in one round; more make fewer rounds."""

    def build(self, size: int, seed: int = 0) -> Topology:
        """For every size."""
        return base_graph(size, self.k)
