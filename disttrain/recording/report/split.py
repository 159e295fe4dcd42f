"""Where the time of a run's steps went."""

from __future__ import annotations

from typing import NamedTuple

from disttrain.recording.report.reading import RunRecord


class Part(NamedTuple):
    """Of a step's time."""

    name: str
    colour: str


COMPUTE, OPTIMIZER, EXPOSED = Part("compute", "#9db8d2"), Part("optimizer", "#4c7aa8"), Part("exposed communication", "#D55E00")
PARTS = (COMPUTE, OPTIMIZER, EXPOSED)


def split_of(run: RunRecord) -> dict[str, float] | None:
    """Seconds per step on worker 0, by the names of :data:`PARTS`; None where waiting was not measured.

    Compute is what remains: forward and backward, loading, and the strategy's arithmetic. Validation and checkpoints count in
    no part, if the run has measured them.
    """
    last = run.records[-1]
    if not all(key in last for key in ("seconds", "optimizer_seconds", "exposed_seconds")) or last["step"] <= 0:
        return None
    aside = last.get("evaluation_seconds", 0.0) + last.get("checkpoint_seconds", 0.0)
    rest = last["seconds"] - aside - last["optimizer_seconds"] - last["exposed_seconds"]
    parts = zip(PARTS, (max(0.0, rest), last["optimizer_seconds"], last["exposed_seconds"]), strict=True)
    return {part.name: seconds / last["step"] for part, seconds in parts}
