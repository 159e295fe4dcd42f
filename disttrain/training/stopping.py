"""When a run stops: at its planned end, or earlier because somebody asked for it.

Workers in lockstep hear of a stop request in the same step, through the strategy. Workers that exchange nothing may be far apart:
each stops where it is, they tell each other by a file in their run folder, and their checkpoint holds each one's own step.
"""

from __future__ import annotations

from pathlib import Path

from disttrain.launch.shutdown import StopRequest

STOP_SECONDS = 20.0
"""How long workers out of lockstep wait for each other once they are told to stop; launchers kill after 30."""


class Stopping:
    """What one worker knows of the run's end.

    Args:
        request: becomes true when this process is asked to stop.
        sign: a file that stands for a stop request to any worker of this folder.
        lockstep: of the strategy.
        planned_end: the last step, unless somebody asks.

    Attributes:
        at: the last step.
        interrupted: whether it is not the planned one any more.
    """

    def __init__(self, request: StopRequest, sign: Path, lockstep: bool, planned_end: int) -> None:
        self._request, self._sign, self._lockstep = request, sign, lockstep
        self.at, self.interrupted = planned_end, False

    def asked(self) -> bool:
        """Whether this worker is told to stop, by a signal or by the sign."""
        if self._lockstep:
            return bool(self._request)
        if self._request:
            self._sign.touch()
        return self._sign.exists()

    def interrupt(self, step: int) -> None:
        """Make ``step`` the last one: the same on all workers in lockstep, else this worker's own."""
        self.at, self.interrupted = min(self.at, step), True

    def patient(self, waited_seconds: float, timeout_seconds: float) -> bool:
        """Whether to go on waiting for the others' parts of a checkpoint: out of lockstep, until somebody wants to stop."""
        if self._lockstep:
            return waited_seconds < timeout_seconds
        return waited_seconds < STOP_SECONDS if self.interrupted else not self.asked()

    @property
    def apart(self) -> bool:
        """Whether the workers have stopped each at a step of its own."""
        return self.interrupted and not self._lockstep

    def over(self) -> None:
        """Take the sign away."""
        self._sign.unlink(missing_ok=True)
