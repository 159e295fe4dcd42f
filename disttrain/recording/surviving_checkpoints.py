"""Checkpoints of a run that outlives its workers: nobody waits for a late one's part, and a lost one's is not missed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from disttrain.recording.checkpoint import CheckpointError, CheckpointStore, Patience, Snapshot, rank_file


class _Begun(NamedTuple):
    partial: Path
    step: int
    snapshot: Snapshot


class SurvivingCheckpointStore(CheckpointStore):
    """A store whose members may be lost: the first of those that are left leads. Who is not back yet saves nothing.

    A checkpoint is made whole by whoever leads when the last part is there. One that a newer overtakes never is: a worker that
    was away has skipped it.

    Args:
        survivors: who is left, whoever leads first.
        others: of :class:`CheckpointStore`.
    """

    def __init__(
        self, directory: Path, rank: int, members: list[int], token: str, keep: int, survivors: Callable[[], list[int]]
    ) -> None:
        self._survivors = survivors
        super().__init__(directory, rank, members, token, keep)
        self._begun: list[_Begun] = []

    @property
    def members(self) -> list[int]:
        """Those of this folder that are left."""
        return [rank for rank in self._survivors() if rank in self._all_members]

    @property
    def leads(self) -> bool:
        """Whether this worker is the first of them."""
        return self.members[:1] == [self.rank]

    def save(self, step: int, snapshot: Snapshot, patient: Patience, meeting_place: str | None = None) -> None:
        """Write this worker's part; at a ``meeting_place`` wait for the others', else :meth:`settle` does the rest."""
        if meeting_place is not None:
            super().save(step, snapshot, patient, meeting_place)
            return
        if self.rank not in self.members:
            return
        partial = self._partial(step)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            self._write_own(partial, snapshot)
        except OSError as error:
            self._give_up(partial, error)
            raise CheckpointError(f"checkpoint of step {step} not saved: {error.strerror or error} ({error.filename})") from None
        shared = {name: tensor.clone() for name, tensor in snapshot.shared.items()}  # training goes on before it is written
        self._begun.append(_Begun(partial, step, Snapshot(shared, {}, snapshot.shared_facts, {})))
        self.settle()

    def settle(self) -> None:
        """Complete what is whole by now, if this worker leads; forget what is complete, or overtaken by a newer one."""
        for begun in reversed(self._begun):
            if self.leads and self._is_whole(begun.partial):
                self._complete(begun.partial, begun.step, begun.snapshot, lambda _: True)
                self._prune()
            if self._path(begun.step).exists():
                self._begun = [each for each in self._begun if each.step > begun.step]
                return

    def _is_whole(self, partial: Path) -> bool:
        return all((partial / f"{Path(rank_file(rank)).stem}.json").exists() for rank in self.members)

    def _note(self, partial: Path, rank: int, patient: Patience) -> Path | None:
        """As in any store, but a part that does not come is left out."""
        note, started = partial / f"{Path(rank_file(rank)).stem}.json", time.monotonic()
        while not note.exists():
            if rank not in self._survivors() or not patient(time.monotonic() - started):
                return None
            time.sleep(0.005)
        return note
