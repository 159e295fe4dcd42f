"""Seconds of a run that are not its steps': what is left of all seconds is training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from disttrain.worlds.traffic import Traffic


@dataclass
class SecondsAside:
    """Running totals of one worker, without what it waited for others, which :class:`Traffic` counts."""

    evaluation: float = 0.0
    checkpoint: float = 0.0

    @contextmanager
    def spent_on(self, what: Literal["evaluation", "checkpoint"], traffic: Traffic) -> Iterator[None]:
        """Count the time inside it."""
        start = time.perf_counter() - traffic.exposed_seconds
        try:
            with traffic.during("validation and checkpoints", what):
                yield
        finally:
            spent = time.perf_counter() - traffic.exposed_seconds - start
            setattr(self, what, getattr(self, what) + spent)

    def metrics(self) -> dict[str, float]:
        """For a record."""
        return {f"{what}_seconds": seconds for what, seconds in asdict(self).items()}
