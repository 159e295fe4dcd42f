"""When a worker saves, and how it waits for those that save with it."""

from __future__ import annotations

import time
from collections.abc import Callable

from disttrain.recording.checkpoint import CheckpointError, CheckpointStore, Snapshot
from disttrain.training.stopping import Stopping


class Saving:
    """Checkpoints on the way and at the end.

    Args:
        store: of this worker.
        stopping: when the run ends.
        lockstep: whether all workers come to the same steps together.
        timeout: seconds for others to come to a checkpoint.
        every: steps between checkpoints; 0: only at the end.
        capture: what is to be saved.
        warn: told what was not.

    Attributes:
        not_until: the step after which there may be a checkpoint: others have theirs up to it.
    """

    def __init__(
        self,
        store: CheckpointStore,
        stopping: Stopping,
        lockstep: bool,
        timeout: float,
        every: int,
        capture: Callable[[], Snapshot],
        warn: Callable[[str], None],
    ) -> None:
        self._store, self._stopping, self._lockstep, self._timeout = store, stopping, lockstep, timeout
        self._every, self._capture, self._warn = every, capture, warn
        self.not_until = 0

    def due(self, step: int) -> bool:
        """Whether there is to be a checkpoint of ``step``."""
        on_the_way = self._every and step % self._every == 0 and step > self.not_until
        return bool(on_the_way) or step >= self._stopping.at

    def save(self, step: int) -> None:
        """Save with the others, or alone if they are about to stop elsewhere.

        Raises:
            RuntimeError: if the last checkpoint fails; an earlier one is missed with a warning.
        """
        stopping, snapshot = self._stopping, self._capture()
        try:
            meeting_place = "stop" if stopping.apart else None
            self._store.save(step, snapshot, lambda waited: stopping.patient(waited, self._timeout), meeting_place)
        except CheckpointError as error:
            if not self._lockstep and stopping.asked() and not stopping.interrupted:
                self._save_apart(step)  # the others stop before they come here
                return
            older = self._store.steps()
            kept = f"the one of step {older[0]} is whole" if older else "there is no older one"
            if step >= stopping.at:
                raise RuntimeError(f"{error}; {kept}") from None
            self._warn(f"{error}; {kept}; training goes on")

    def wait_for_the_others(self, step: int) -> None:
        """Stay until the last checkpoint is whole, or until others are stopped on their way to it."""
        while step not in self._store.steps() and not self._stopping.interrupted:
            if self._stopping.asked():
                self._save_apart(step)
            self._store.settle()
            time.sleep(0.02)

    def _save_apart(self, step: int) -> None:
        """Stop here, while other workers stop elsewhere."""
        self._stopping.interrupt(step)
        self.save(step)
