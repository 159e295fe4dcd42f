"""How long to wait for a peer: long enough for nearly every exchange of late, and no longer.

A fixed time cannot be right while the network and the machines change. The median of recent times, plus a multiple of their
median absolute deviation, follows them, and a few very late answers do not move it.
"""

from __future__ import annotations

from collections import deque
from statistics import median

FLOOR_SECONDS = 1.0
FIRST_SECONDS = 10.0
DEVIATIONS = 10.0
FEWEST, MOST = 8, 100


class Deadline:
    """Follows the times that exchanges take.

    Args:
        floor_seconds: it is never shorter, for a peer may pause to write a checkpoint.
        first_seconds: as long as fewer than :data:`FEWEST` times are known.
    """

    def __init__(self, floor_seconds: float = FLOOR_SECONDS, first_seconds: float = FIRST_SECONDS) -> None:
        self._floor, self._first = floor_seconds, max(floor_seconds, first_seconds)
        self._times: deque[float] = deque(maxlen=MOST)

    def add(self, seconds: float) -> None:
        """An exchange took so long."""
        self._times.append(seconds)

    @property
    def seconds(self) -> float:
        """How long to wait now."""
        if len(self._times) < FEWEST:
            return self._first
        middle = median(self._times)
        deviation = median(abs(each - middle) for each in self._times)
        return max(self._floor, middle + DEVIATIONS * deviation)
