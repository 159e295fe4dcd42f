"""What a run needs to know of workers that are lost, were away or are back, over any world; over most, there are none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disttrain.launch.shutdown import STOPPED, leave
from disttrain.recording.checkpoint import CheckpointStore, Snapshot, pack, unpack
from disttrain.recording.surviving_checkpoints import SurvivingCheckpointStore
from disttrain.strategies.attach import StrategyOptimizer
from disttrain.strategies.base import Strategy
from disttrain.worlds import JoiningWorld, SurvivingWorld, TorchWorld

SUMMARY_WRITTEN = "summary written"
MESSAGES = 3
"""Of a packed snapshot."""


class Survival:
    """The living of a run, as one worker sees them.

    Args:
        world: all workers.

    Attributes:
        possible: whether the run outlives its workers. If so, nothing but its end waits for all of them.
        joins: whether this worker was started again, and goes on from another's state.
    """

    def __init__(self, world: TorchWorld) -> None:
        self._world, self._surviving = world, world if isinstance(world, SurvivingWorld) else None
        self.possible, self.joins = self._surviving is not None, isinstance(world, JoiningWorld)
        self._missed, self._given = 0, dict[int, int]()

    @property
    def leads(self) -> bool:
        """Whether this worker writes for all: worker 0, or the first that is left."""
        return self._world.rank == 0 if self._surviving is None else self._surviving.leads

    def checkpoints(self, directory: Path, members: list[int], token: str, keep: int) -> CheckpointStore:
        """Where the run's checkpoints are kept."""
        if self._surviving is None:
            return CheckpointStore(directory, self._world.rank, members, token, keep)
        world = self._surviving
        return SurvivingCheckpointStore(directory, world.rank, members, token, keep, lambda: world.record.seniority)

    def tell(self, step: int) -> None:
        """Let everybody know that this worker has made ``step`` steps."""
        if self._surviving is not None:
            self._surviving.register.step = step

    def give_state(self, capture: Callable[[], Snapshot]) -> None:
        """Hand this worker's state to those that were started again, and for whom the launcher has chosen it."""
        if self._surviving is None:
            return
        record = self._surviving.record
        for taker, giver in record.givers.items():
            if giver == self._world.rank and self._given.get(taker) != record.lives[taker]:
                self._given[taker] = record.lives[taker]
                snapshot = capture()
                snapshot.local_facts["means"] = self._surviving.committed.calls
                self._surviving.give_state(taker, pack(snapshot))

    def take_state(self, patient: Callable[[], bool]) -> Snapshot:
        """What another worker hands to this one; leaves the process if it is asked to stop before.

        Raises:
            RuntimeError: if that worker is lost.
        """
        assert self._surviving is not None
        messages = self._surviving.take_state(MESSAGES, patient)
        if messages is None:
            leave(STOPPED)
        snapshot = unpack(messages)
        self._surviving.committed.calls = snapshot.local_facts.pop("means")
        return snapshot

    def come_to_the_end(self) -> None:
        """Nobody is let in from now on; who was not back before has no part in the result, and waits to be ended."""
        if self._surviving is None:
            return
        self._surviving.register.close_door()
        while self._world.rank not in self._surviving.record.survivors:
            time.sleep(0.1)

    def catch_up(self, optimizer: StrategyOptimizer, strategy: Strategy, last_step: int) -> None:
        """If this worker was away, go on where the others are: the steps that it has missed are not made.

        Data and schedule go by the step, so it is where it would have been; its parameters are what they were.
        """
        step = optimizer.counts.steps
        missed = self.missed(step, last_step, self._world.size * strategy.period)
        self._missed += missed
        if missed:
            print(f"disttrain: rank {self._world.rank} was away: it skips {missed} steps after step {step}", file=sys.stderr)
            optimizer.skip(missed)
            strategy.skip(missed)

    def take_missed(self) -> int:
        """How many steps were skipped since the last call."""
        missed, self._missed = self._missed, 0
        return missed

    def missed(self, step: int, last_step: int, tolerance: int) -> int:
        """How many steps the others have made while this worker was away.

        Args:
            step: of this worker.
            last_step: the run's; it is never skipped.
            tolerance: steps that workers may be apart without any of them being away.
        """
        if self._surviving is None:
            return 0
        record = self._surviving.record
        steps = sorted(record.steps[rank] for rank in record.survivors)
        middle = steps[len(steps) // 2]
        return max(0, min(middle, last_step - 1) - step) if middle - step > tolerance else 0

    @property
    def facts(self) -> dict[str, Any]:
        """For the summary and for checkpoints: who was lost, when, and why, and after which step it was back, if it was."""
        if self._surviving is None:
            return {}
        names = ("step", "seconds", "reason", "back_from")
        losses = sorted(self._surviving.record.losses.items())
        told = [{"rank": rank} | {name: getattr(loss, name) for name in names} for rank, each in losses for loss in each]
        return {"lost_workers": told}

    def wait_for_the_summary(self) -> None:
        """Until the worker that leads has written it; if it is lost before, another one leads, perhaps this one."""
        if self._surviving is None:
            return
        while not (self.leads or self._surviving.signed(SUMMARY_WRITTEN) is not None):
            time.sleep(0.01)

    def close(self) -> None:
        """The summary is written."""
        if self._surviving is not None:
            self._surviving.sign(SUMMARY_WRITTEN)
