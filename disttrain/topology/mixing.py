"""A mixing round: who hears from whom, and how much each gives to what it hears.

Worker i adds the differences to what its k peers sent,

    x_i ← x_i + Σ_k w_ik (x_k − x_i),

which is row i of ``x ← W x``, where W_ij = w_ij and W_ii = 1 − Σ_k w_ik. Where W is symmetric, both ends of a link add opposite
amounts, so the sum over all workers is kept even if one end adds its amount later than the other.

W itself, ``[n, n]``, is for looking at: all that training touches are arrays of one entry per link.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from disttrain.worlds.world import MixingRound

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


class Links(NamedTuple):
    """Links of one direction, ``[e]`` each: ``receivers`` give ``weights`` to what they hear from ``senders``."""

    receivers: Ints
    senders: Ints
    weights: Floats


def both_ways(pairs: Ints, weights: float | Floats) -> Links:
    """Links that carry as much in either direction.

    Args:
        pairs: int64 ``[m, 2]``, each once.
        weights: of each pair, ``[m]``, or of all.
    """
    forth, back = pairs[:, 0], pairs[:, 1]
    once = np.broadcast_to(np.asarray(weights, dtype=np.float64), len(pairs))
    return Links(np.concatenate([forth, back]), np.concatenate([back, forth]), np.concatenate([once, once]))


def together(parts: Iterable[Links]) -> Links:
    """The links of all parts, as one round."""
    none = Links(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    receivers, senders, weights = zip(none, *parts, strict=True)
    return Links(np.concatenate(receivers), np.concatenate(senders), np.concatenate(weights))


@dataclass(frozen=True, eq=False)
class Mixing(MixingRound):
    """A round of exchange, and what becomes of it; it can be given to ``World.exchange`` as it is.

    Attributes:
        senders: int64 ``[size, k]``, as in `MixingRound`.
        weights: float64 ``[size, k]``: what worker i gives to each of them; 0 for itself.

    Raises:
        ValueError: if they differ in shape.
    """

    weights: Tensor

    def __post_init__(self) -> None:
        if self.weights.shape != self.senders.shape:
            raise ValueError(f"a mixing round needs a weight for each sender, {list(self.senders.shape)}, "
                             f"got {list(self.weights.shape)}")  # fmt: skip

    @classmethod
    def of(cls, size: int, links: Links) -> Self:
        """The round of ``size`` workers with these links, none twice; a worker's senders are in ascending order."""
        order = np.lexsort((links.senders, links.receivers))
        receivers, sent_by, given = (each[order] for each in links)
        heard = np.bincount(receivers, minlength=size)
        k = int(heard.max())
        places = np.arange(len(receivers)) - np.repeat(np.cumsum(heard) - heard, heard)
        senders, weights = np.arange(size).repeat(k).reshape(size, k), np.zeros((size, k))
        senders[receivers, places], weights[receivers, places] = sent_by, given
        return cls(torch.from_numpy(senders), torch.from_numpy(weights))

    @property
    def size(self) -> int:
        """The number of workers."""
        return len(self.senders)

    @property
    def links(self) -> Links:
        """Its links, by receiver; a worker that hears itself has none."""
        senders = self.senders.numpy()
        receivers = np.arange(self.size).repeat(senders.shape[1]).reshape(senders.shape)
        real = senders != receivers
        return Links(receivers[real], senders[real], self.weights.numpy()[real])

    @property
    def degree(self) -> int:
        """The most peers that one worker hears from."""
        return int(np.bincount(self.links.receivers, minlength=self.size).max())

    @property
    def is_symmetric(self) -> bool:
        """Whether both ends of every link give the same weight to each other, to the last bit."""
        receivers, senders, weights = self.links
        forth, back = np.lexsort((senders, receivers)), np.lexsort((receivers, senders))
        return (
            np.array_equal(receivers[forth], senders[back])
            and np.array_equal(senders[forth], receivers[back])
            and np.array_equal(weights[forth], weights[back])
        )

    @property
    def kept(self) -> Floats:
        """What each worker keeps of itself if the weights are shares that senders give away: 1 − Σ_i w_ij, float64 ``[size]``."""
        _, senders, weights = self.links
        given: Floats = np.bincount(senders, weights, minlength=self.size).astype(np.float64)
        return 1 - given

    @property
    def is_doubly_stochastic(self) -> bool:
        """Whether what a worker gives away is what it makes room for, so that the mean over workers stays what it is."""
        heard = self.weights.numpy().sum(1)
        return bool(np.abs(1 - heard - self.kept).max(initial=0) <= 1e-12)

    def matrix(self) -> Floats:
        """W, float64 ``[size, size]``: row i is what worker i makes of everybody."""
        receivers, senders, weights = self.links
        W = np.zeros((self.size, self.size))
        W[receivers, senders] = weights
        W[np.diag_indices(self.size)] = 1 - W.sum(1)
        return W


@dataclass(frozen=True, eq=False)
class Push(Mixing):
    """A round in which every worker gives shares of itself away: W_jj = 1 − Σ_i w_ij is what it keeps.

    Columns of W sum to 1, so the sum over the workers stays; rows need not, so that equal models may become different. Only an
    algorithm that carries weights along makes sense of it.
    """

    @classmethod
    def equally(cls, size: int, receivers: Ints, senders: Ints) -> Self:
        """Every sender keeps as much as each of its receivers gets."""
        return cls.of(size, Links(receivers, senders, 1 / (1 + np.bincount(senders, minlength=size))[senders]))

    def matrix(self) -> Floats:
        """W, float64 ``[size, size]``: column j is where worker j goes."""
        W = super().matrix()
        W[np.diag_indices(self.size)] = self.kept
        return W


def damped(mixing: Mixing, rate: float) -> Mixing:
    """The round that goes only so far, in (0, 1], of the way: I − rate (I − W)."""
    return mixing if rate == 1 else Mixing(mixing.senders, mixing.weights * rate)


def in_sites(mixing: Mixing, members: int) -> Mixing:
    """A round of sites, as a round of their consecutive ``members``: each hears from those at its own place in other sites."""
    places = torch.arange(members)[None, :, None]
    senders = (mixing.senders[:, None] * members + places).flatten(0, 1)
    return Mixing(senders, mixing.weights.repeat_interleave(members, 0))


def restrict(mixing: Mixing, alive: Tensor) -> Mixing:
    """What is left of a round when some workers are gone: links with a dead end are cut, for both ends.

    The weight of a cut link returns to whoever gave it. So W stays symmetric and doubly stochastic on the living, who keep
    their sum, and is the identity on the dead.

    Args:
        mixing: a symmetric round of n workers.
        alive: bool ``[n]``.

    Raises:
        ValueError: if the round is not symmetric, for then a worker that loses the peer it hears from may still be heard by
            another one, and the sum would drift; or if ``alive`` is not of this round's workers.
    """
    if alive.shape != (mixing.size,) or alive.dtype != torch.bool:
        raise ValueError(f"alive must be bool [{mixing.size}], got {alive.dtype} {list(alive.shape)}")
    if not mixing.is_symmetric:
        raise ValueError("a round in which a worker hears from one peer and is heard by another cannot go on without some of "
                         "them: take a symmetric topology, such as base_graph or random_matching")  # fmt: skip
    both = alive[:, None] & alive[mixing.senders]
    themselves = torch.arange(mixing.size)[:, None]
    return Mixing(torch.where(both, mixing.senders, themselves), torch.where(both, mixing.weights, 0.0))
