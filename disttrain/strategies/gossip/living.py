"""Rounds among the workers that are left, when some are lost.

The others are numbered anew, in their order, and build the topology of so many workers: it is as connected, and as soon at the
mean, as it was. Where there is none of that size (a hypercube needs a power of two), what is left of the old one has to do.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from disttrain.topology import Mixing, Topology, TopologyConfig, complete, restrict


def check_survival(topology: Topology) -> None:
    """Raise ValueError unless workers can be lost without the others' mean moving."""
    if not topology.symmetric:
        raise ValueError(
            f"topology.name={topology.name}: in its rounds a worker hears from one peer and is heard by another, and cannot go "
            "on without either; take a topology whose links go both ways, such as base_graph or random_matching"
        )


def among_living(topology: Topology, config: TopologyConfig, t: int, living: Tensor, seed: int) -> Mixing:
    """Round ``t`` of those that are left.

    Args:
        topology: of all n workers: the one that ``config`` builds, or the complete one.
        config: of the run.
        t: the round.
        living: bool ``[n]``.
        seed: the run's.
    """
    if living.all():
        return topology.round(t)
    smaller = _of_size(config, int(living.sum()), seed, topology.name == "complete")
    return restrict(topology.round(t), living) if smaller is None else embedded(smaller.round(t), living)


@lru_cache(maxsize=8)
def _of_size(config: TopologyConfig, size: int, seed: int, everybody: bool) -> Topology | None:
    """The topology of so many workers; None if there is none."""
    try:
        return complete(size) if everybody else config.build(size, seed)
    except ValueError:
        return None


def embedded(mixing: Mixing, living: Tensor) -> Mixing:
    """A round of the m living workers as one of all n ``[n, k]``; the others hear nobody and are heard by nobody."""
    members = living.nonzero()[:, 0]
    senders = torch.arange(len(living))[:, None].repeat(1, mixing.senders.shape[1])
    weights = torch.zeros(senders.shape, dtype=torch.float64)
    senders[members], weights[members] = members[mixing.senders], mixing.weights
    return Mixing(senders, weights)
