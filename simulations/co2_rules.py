"""The library's predicted_mean with another lead: how many rounds the mean is predicted ahead of the newest that has landed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from disttrain.strategies.base import strategies
from disttrain.strategies.local_updates.predicted_mean import PredictedMean, PredictedMeanConfig


class Ahead(PredictedMean):
    """With a lead of 1 it is the library's."""

    def __init__(self, period: int, pull: float, smoothing: float, warmup_rounds: int, lead: float) -> None:
        super().__init__(period, pull, smoothing, warmup_rounds)
        self.lead = lead

    def prediction(self) -> Tensor:
        """Where the mean is likely to be after so many rounds more: ``[1, d]``."""
        return self.anchor - self.lead * self.velocity


@strategies.register
class AheadConfig(PredictedMeanConfig):
    """See the module's docstring."""

    name: Literal["ahead"] = "ahead"  # type: ignore[assignment]
    lead: float = Field(1.0, ge=0)
    """In rounds."""

    def build(self) -> Ahead:
        """The strategy itself."""
        return Ahead(self.period, self.pull, self.smoothing, self.warmup_rounds, self.lead)
