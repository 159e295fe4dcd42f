"""Every worker pushes to some others, drawn anew in each round: nobody has to wait for whom it will hear, or to be heard.

Some hear of many and some of nobody, so a round's columns sum to 1 and its rows do not: it is for push-sum, where weights that
travel along say how much of everybody has arrived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from disttrain import random
from disttrain.topology.base import Topology, TopologyConfig, check_workers, topologies
from disttrain.topology.mixing import Push


def random_push(n: int, k: int = 3, seed: int = 0) -> Topology:
    """In each round every worker keeps 1/(k + 1) of itself, and pushes as much to each of k others, drawn by itself.

    The draw is that of "Epidemic Learning: Boosting Decentralized Learning with Randomized Communication" (arXiv 2310.01972), in
    which receivers take the plain mean of what they hear. With small k many hear of nobody for some rounds, and what they keep
    dwindles: among 32 workers weights are below 1/20 in a hundredth of all rounds with k = 1, and below 1/10 with k = 2.

    Args:
        n: workers.
        k: the others that a worker pushes to; if there are fewer, all of them.
        seed: of the draws; a round's depends on seed and round alone.

    Raises:
        ValueError: if k is not positive.
    """
    check_workers("random_push", n)
    if k < 1:
        raise ValueError(f"random_push needs a k of at least 1, got {k}: a worker that pushes to nobody trains alone")
    return RandomPush(n, min(k, n - 1), seed)


@dataclass(frozen=True, eq=False)
class RandomPush(Topology):
    """Everybody's k receivers drawn by (seed, round), all sets being equally likely."""

    size: int
    k: int
    seed: int
    name: str = "random_push"

    @property
    def period(self) -> None:
        """None: each round is drawn."""
        return None

    def round(self, t: int) -> Push:
        """O(n k²), and nothing is kept."""
        workers = torch.arange(self.size)
        others = drawn(random.key(self.seed, random.Stream.TOPOLOGY, t, workers), self.k, self.size - 1)
        receivers = others + (others >= workers[:, None])
        return Push.equally(self.size, receivers.flatten().numpy(), np.arange(self.size).repeat(self.k))

    @property
    def degree(self) -> int:
        """All others may push to the same worker; of many workers, few ever do."""
        return self.size - 1

    @property
    def symmetric(self) -> bool:
        """Only if all push to all."""
        return self.doubly_stochastic

    @property
    def doubly_stochastic(self) -> bool:
        """Only if all push to all."""
        return self.k == self.size - 1

    def is_connected(self) -> bool:
        """Always: sooner or later, everybody pushes to everybody."""
        return True

    def spectral_gap(self) -> float:
        """1 − √ρ, where ρ is what a round leaves, in the mean, of Σ_i ‖x_i − w_i x̄‖², whatever numerators x and weights w are.

        With d_i = x_i − w_i x̄, whose sum is 0, and receivers that are drawn each by each sender with probability p = k/(n − 1),
        E Σ_i ‖d_i + Σ_{j→i} d_j‖² = (1 + k − 2p − (n − 2)p²) Σ_i ‖d_i‖², and all is divided by (k + 1)².
        """
        if self.size == 1:
            return 1.0
        p = self.k / (self.size - 1)
        return 1 - math.sqrt(max(0.0, 1 + self.k - 2 * p - (self.size - 2) * p * p)) / (self.k + 1)

    @property
    def exact_after(self) -> int | None:
        """Never, unless all push to all."""
        return min(1, self.size - 1) if self.doubly_stochastic else None


def drawn(keys: Tensor, k: int, m: int) -> Tensor:
    """For each of the ``keys [n]``, k different ones of m numbers, int64 ``[n, k]``; all sets are equally likely.

    R. W. Floyd's algorithm (Bentley, "Programming pearls: a sample of brilliance", 1987): k draws, and no list of all m.
    """
    draws, chosen = random.bits(keys, k), torch.empty(len(keys), k, dtype=torch.int64)
    for place, last in enumerate(range(m - k, m)):
        one = draws[:, place] % (last + 1)
        taken = (chosen[:, :place] == one[:, None]).any(1)
        chosen[:, place] = torch.where(taken, last, one)
    return chosen


@topologies.register
class RandomPushConfig(TopologyConfig):
    """Everybody pushes to some others, drawn anew in each round, from the run's seed; for strategies that carry weights along."""

    name: Literal["random_push"] = "random_push"
    k: int = Field(3, ge=1)
    """How many others a worker pushes to; with 1 or 2 weights become small, and steps, which are divided by them, large."""

    def build(self, size: int, seed: int = 0) -> Topology:
        """For every size."""
        return random_push(size, self.k, seed)
