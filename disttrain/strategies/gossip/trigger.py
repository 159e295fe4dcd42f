"""Talking when workers have gone far apart: each pair estimates the consensus distance, and exchanges models if it is too large.

"Consensus Control for Decentralized Deep Learning" (arXiv 2102.04828) finds that training is as good as with a central mean while
the consensus distance Ξ, Ξ² = 1/n Σ_i ‖x_i − x̄‖², stays below a critical value, and mixes more often where it does not. Here
workers mix less often where it does, and nobody has to know x̄. A worker estimates Ξ² from what its exchanges have measured:

    after one     ρ_i = D_i (n Σ_j W_ij² − 1) / (2n)             with D_i its mean squared distance to the peers that it heard
    since then    Ξ_i² = ρ_i + (n − 1)/n ‖x_i − x_i at that time‖²

Both take it that workers go their own ways: then D_i is 2n/(n − 1) Ξ² on average, of which a row of W leaves the share
(n Σ_j W_ij² − 1) / (n − 1), and what each has moved since adds up. Where they move together Ξ is overestimated and they talk more
often than they need; at most it is underestimated by √2, by two that move in opposite directions. And D_i is of peers: among 64
workers that walk at random, Ξ is held at 0.8 to 1.0 times the threshold by matchings and base graphs, and at 1.4 to 2 times on a
ring, whose neighbours are nearer to each other than to all (`tests/strategies/gossip/test_trigger.py` has 8 workers).

In each round a pair that the topology names sends each other Ξ_i², 8 bytes, and exchanges models if the mean of the two numbers
is at least the threshold's square. Addition commutes to the last bit, so both ends decide alike; no other worker needs to know.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from disttrain.topology import Mixing
from disttrain.worlds.world import Lane

BLOCK = 1024


class Known(NamedTuple):
    """What each worker knows from its last exchange; tensors that nobody writes to."""

    reference: Tensor
    """``[L, d]``: its parameters after it."""
    residual: Tensor
    """ρ, float64 ``[L, 1]``."""


class Trigger:
    """Decides, pair by pair, whether models are exchanged.

    Args:
        threshold: of Ξ.
        relative: whether that is a share of ‖x_i‖; then Ξ_i² / ‖x_i‖² is what is sent.
    """

    def __init__(self, threshold: float, relative: bool = True) -> None:
        self.threshold, self.relative = threshold, relative

    def begin(self, x: Tensor) -> None:
        """All workers are at the same point ``x [L, d]``."""
        self._reference, self._residual = x.clone(), torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        self._estimate = torch.zeros_like(self._residual)
        self._rounds = torch.zeros(len(x), 2, dtype=torch.int64, device=x.device)  # in which it spoke, and all

    # --- on the lane, from what is lent ------------------------------------------------------------------------------

    @property
    def known(self) -> Known:
        """From the last exchange that has landed."""
        return Known(self._reference, self._residual)

    def estimate(self, x: Tensor, known: Known, num_workers: int) -> Tensor:
        """Ξ², or its share of ‖x‖², as each worker sees it: float64 ``[L, 1]`` from parameters ``[L, d]``."""
        moved = squared_length(x - known.reference)
        estimate = known.residual + (num_workers - 1) / num_workers * moved
        return estimate / squared_length(x).clamp(min=torch.finfo(torch.float64).tiny) if self.relative else estimate

    def exchange(self, lane: Lane, x: Tensor, mixing: Mixing, estimate: Tensor) -> tuple[Tensor, Tensor]:
        """What those peers sent with whom models ``x [L, b]`` are exchanged, ``[L, k, b]``, and their weights ``[L, k]``."""
        theirs = lane.exchange(estimate, mixing)[..., 0]
        far = ~((estimate + theirs) / 2 < self.threshold**2).cpu()  # so that what is not finite is said, and ends the run
        own = lane.positions
        peers = torch.where(far, mixing.senders[own], own[:, None])
        return lane.exchange_with(x, peers), torch.where(far, mixing.weights[own], 0.0)

    def measured(self, mixed: Tensor, distance: Tensor, weights: Tensor, known: Known, num_workers: int) -> Known:
        """What is known after an exchange that leads to ``mixed [L, d]``; ``distance [L, 1]`` is negative without any peer."""
        squares = weights.square().sum(1, keepdim=True) + (1 - weights.sum(1, keepdim=True)).square()
        left = (num_workers * squares - 1).clamp(min=0.0) / (2 * num_workers)
        alone = distance < 0
        residual = torch.where(alone, known.residual, distance.double() * left.to(distance.device))
        return Known(torch.where(alone, known.reference, mixed), residual)

    # --- after it ----------------------------------------------------------------------------------------------------

    def land(self, spoke: Tensor, known: Known, estimate: Tensor) -> None:
        """Go on from what a round has measured; ``spoke`` says of each worker ``[L, 1]`` whether it took part."""
        self._rounds += torch.cat([spoke, torch.ones_like(spoke)], dim=1)
        (self._reference, self._residual), self._estimate = known, estimate

    @property
    def metrics(self) -> dict[str, float]:
        """In which share of the rounds worker 0 has exchanged models, and its last estimate of what the threshold is for."""
        spoke, rounds = (int(each) for each in self._rounds[0])
        return {"spoken": spoke / max(1, rounds), "estimated_consensus_distance": float(self._estimate[0].sqrt())}

    @property
    def local(self) -> dict[str, Tensor]:
        """What each worker knows."""
        names = {"reference": self._reference, "residual": self._residual, "estimate": self._estimate, "rounds": self._rounds}
        return {f"trigger_{name}": state for name, state in names.items()}


def squared_length(x: Tensor) -> Tensor:
    """‖x_i‖² of rows ``[L, d]``, float64 ``[L, 1]``: the same bits however many rows there are.

    Torch sums a single long row by parts, as many as it has threads; short ones it does not divide.
    """
    parts = x.square()
    while parts.shape[1] > BLOCK:
        parts = pad(parts, (0, -parts.shape[1] % BLOCK)).view(len(parts), -1, BLOCK).sum(-1)
    return parts.double().sum(-1, keepdim=True)
