"""The names of the workers' log files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def log_stems(directory: Path, ranks: Iterable[int]) -> dict[int, Path]:
    """Logs without suffix of some ranks that start: ``rank3``, in a second start ``rank3.1`` …; none writes over an earlier one.

    ``.log`` takes what a worker writes to standard error, ``.out`` its standard output; worker 0's goes to the terminal.
    """
    ranks = list(ranks)
    before = [path.stem.partition(".")[2] or "0" for rank in ranks for path in _logs(directory, rank)]
    suffix = f".{1 + max(map(int, before))}" if before else ""
    return {rank: directory / f"rank{rank}{suffix}" for rank in ranks}


def _logs(directory: Path, rank: int) -> list[Path]:
    return [*directory.glob(f"rank{rank}.log"), *directory.glob(f"rank{rank}.*.log")]
