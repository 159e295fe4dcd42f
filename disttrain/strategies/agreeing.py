"""Agreeing on facts without waiting for everybody in the middle of a round.

Where workers may be lost, nobody is waited for at all: facts are what everybody has last said.
"""

from __future__ import annotations

from torch import Tensor

from disttrain.parameters import Layout
from disttrain.strategies.base import Strategy
from disttrain.worlds.in_flight import InFlight
from disttrain.worlds.surviving import SurvivesPeers
from disttrain.worlds.world import World


class AgreesLate(Strategy):
    """A strategy in lockstep whose workers should not wait for all others in every step: facts have a lane of their own."""

    lockstep = True

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Open the lane."""
        super().begin(x, layout, world, seed)
        self._facts = world.lane("facts")

    def agree(self, values: Tensor) -> Tensor:
        """The mean over all workers, at once; where they may be lost, each keeps its own."""
        return values if isinstance(self._facts, SurvivesPeers) else self.world.mean(values)

    @property
    def agrees_late(self) -> bool:
        """Always; a subclass may know better."""
        return True

    def agree_later(self, values: Tensor) -> InFlight:
        """The mean over all workers, on a lane of its own: past whatever is under way."""
        facts = self._facts
        return facts.start(facts.latest_mean if isinstance(facts, SurvivesPeers) else facts.mean, values)
