"""What gossip strategies exchange, as dense matrices, and topologies to try."""

import numpy as np

from disttrain.topology import (
    BaseGraphConfig,
    CompleteConfig,
    ExponentialConfig,
    OnePeerExponentialConfig,
    RandomMatchingConfig,
    RingConfig,
    StarConfig,
)

TOPOLOGIES = [RingConfig(), StarConfig(), CompleteConfig(), ExponentialConfig(), OnePeerExponentialConfig(),
              RandomMatchingConfig(), BaseGraphConfig(k=1), BaseGraphConfig(k=2)]  # fmt: skip


def mixing(strategy, step):
    """The matrix of what is exchanged after ``step`` local steps; from a fresh look at topology and schedule."""
    strategy._steps.fill_(step)
    mixing = strategy.round_due()
    return np.eye(strategy.world.size) if mixing is None else mixing.matrix()


def matrices(strategy, steps):
    """Of every step, the first one before any, ``[steps + 1, n, n]``."""
    return [mixing(strategy, step) for step in range(steps + 1)]
