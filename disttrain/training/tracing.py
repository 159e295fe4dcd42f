"""A worker's part in the trace of a run: opened before the first step, written after the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from disttrain.config_sections import RecordingConfig
from disttrain.recording.folder import RunFolder
from disttrain.recording.trace import join_parts, write_part
from disttrain.worlds import TorchWorld
from disttrain.worlds.trace import Trace


class Tracing:
    """Nothing, unless ``recording.trace``.

    Args:
        config: which steps.
        world: whose traffic is traced.
        folder: of the run.
        token: equal on all workers, different in every start.
        warn: told what went wrong: no trace is worth a run.
    """

    def __init__(
        self, config: RecordingConfig, world: TorchWorld, folder: RunFolder, token: str, warn: Callable[[str], None]
    ) -> None:
        self._world, self._folder, self._warn = world, folder, warn
        self._directory = folder.path / f".trace-{token}"
        self._trace = Trace(config.trace_from, config.trace_steps) if config.trace else None

    def begin(self, step: int) -> None:
        """Training begins after ``step``; what came before, meeting and restoring, is not traced."""
        self._world.traffic.trace = self._trace
        if self._trace is not None:
            self._trace.begin(step)

    def end_step(self, step: int) -> None:
        """``step`` steps are made."""
        if self._trace is not None:
            self._trace.end_step(step)

    def write_part(self) -> None:
        """Write what this worker did, if that was in the window: a run continued beyond it leaves the trace there is."""
        self._world.traffic.trace = None
        if self._trace is None or not self._trace.spans:
            return
        try:
            write_part(self._directory, self._world.rank, self._trace)
        except OSError as error:
            self._warn(f"the trace of rank {self._world.rank} is lost: {error}")

    def join(self, ranks: Sequence[int]) -> None:
        """Make ``trace.json`` of the parts of the workers that share this folder."""
        if self._trace is None or not self._trace.spans:
            return
        try:
            missing = join_parts(self._directory, ranks, self._folder)
        except (OSError, ValueError) as error:
            self._warn(f"trace.json is not written: {error}")
            return
        if missing:
            self._warn(f"trace.json lacks rank {', '.join(map(str, missing))}")
        if self._trace.dropped:
            self._warn(f"trace.json lacks the last {self._trace.dropped:,} spans of rank {self._world.rank}: trace fewer steps")
