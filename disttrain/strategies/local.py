"""No communication: every worker trains on its own share of the data, from the same start.

The baseline for every other strategy's cost (it is the run without a network) and gain. Nothing is merged at the end:
what is exported, validated and logged is worker 0's own.
"""

from __future__ import annotations

from typing import Literal

from disttrain.strategies.base import Strategy, StrategyConfig, strategies


@strategies.register
class LocalConfig(StrategyConfig):
    """Workers that never talk."""

    name: Literal["local"] = "local"

    def build(self) -> Strategy:
        """The defaults of :class:`Strategy`."""
        return Strategy()
