"""``metrics.jsonl``: one object for each logged step, appended as training goes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disttrain.recording.folder import write_atomically


class MetricsFile:
    """Appends records to a file of JSON lines; numbers that JSON lacks (NaN, infinity) become null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Add one line; it is in the file when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps({key: finite_or_none(value) for key, value in record.items()}) + "\n")

    def forget_after(self, step: int) -> dict[str, Any]:
        """Drop records of steps beyond ``step``, and a last line that a crash left half written; returns the last one kept."""
        if not self.path.exists():
            return {}
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        return kept[-1] if kept else {}


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, in order; a line that is no JSON ends them (a crash in mid-write leaves one)."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def finite_or_none(value: Any) -> Any:
    """The value itself, or None for a float that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
