"""Agreeing on facts without waiting for everybody in the middle of a round."""

from __future__ import annotations

from torch import Tensor

from disttrain.parameters import Layout
from disttrain.strategies.base import Strategy
from disttrain.worlds.in_flight import InFlight
from disttrain.worlds.world import World


class AgreesLate(Strategy):
    """A strategy in lockstep whose workers should not wait for all others in every step: facts have a lane of their own."""

    lockstep = True

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Open the lane."""
        super().begin(x, layout, world, seed)
        self._facts = world.lane("facts")

    def agree(self, values: Tensor) -> Tensor:
        """The mean over all workers, at once."""
        return self.world.mean(values)

    @property
    def agrees_late(self) -> bool:
        """Always; a subclass may know better."""
        return True

    def agree_later(self, values: Tensor) -> InFlight:
        """The mean over all workers, on a lane of its own: past whatever is under way."""
        return self._facts.start(self._facts.mean, values)
