"""The names of the workers' log files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def log_stems(directory: Path, ranks: Iterable[int]) -> dict[int, Path]:
    """Each rank's log without suffix: ``rank3``, in a second start ``rank3.1`` …; no start writes over an earlier one's.

    ``.log`` takes what a worker writes to standard error, ``.out`` its standard output; worker 0's goes to the terminal.
    """
    starts = len(list(directory.glob("rank0*.log")))
    suffix = f".{starts}" if starts else ""
    return {rank: directory / f"rank{rank}{suffix}" for rank in ranks}
