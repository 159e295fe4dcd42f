"""A stretch of a ``trace.json`` as a picture: rows of bars for every rank, time from left to right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.recording.trace import ROWS

WAITING, NETWORK = "#D55E00", "#009E73"
SHADES = {
    "forward": "#9db8d2",
    "backward": "#6c95bd",
    "forward and backward": "#6c95bd",
    "data": "#d9dee5",
    "optimizer": "#34587d",
    "strategy": "#8a6fae",
    "exposed communication": WAITING,
    "validation and checkpoints": "#b9b9b9",
}
"""By name or, where a name has none, by row; lanes have :data:`NETWORK`'s colour."""
LEAST_SHARE = 5e-3
"""Of the window, for which a lane that carries next to nothing gets no row."""
NOT_DRAWN = ("step", "validation and checkpoints")


@dataclass(frozen=True)
class Bar:
    """Something that a worker did.

    Attributes:
        rank: of the worker.
        row: such as compute.
        name: of what was done.
        start: in seconds since the trace began.
        end: likewise.
    """

    rank: int
    row: str
    name: str
    start: float
    end: float


def read_trace(path: Path) -> list[Bar]:
    """The spans of a trace, in the order of its rows.

    Raises:
        ValueError: if it is no trace of ours.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        rows = {(each["pid"], each["tid"]): each["args"]["name"] for each in events if each["name"] == "thread_name"}
        return [
            Bar(each["pid"], rows[each["pid"], each["tid"]], each["name"], each["ts"] / 1e6, (each["ts"] + each["dur"]) / 1e6)
            for each in events
            if each["ph"] == "X"
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no trace: {type(error).__name__}: {error}") from None


def steps_of(bars: Sequence[Bar], first: int, last: int) -> tuple[float, float]:
    """From the beginning of rank 0's ``first`` traced step (from 0) to the end of its ``last``, in seconds."""
    steps = [bar for bar in bars if bar.row == "step" and bar.rank == bars[0].rank]
    return steps[min(first, len(steps) - 1)].start, steps[min(last, len(steps) - 1)].end


def draw_timeline(axes: Any, bars: Sequence[Bar], window: tuple[float, float], ranks: Sequence[int]) -> None:
    """Draw what some ranks did in a window, each rank's rows below the other's."""
    begin, end = window
    seen = [bar for bar in bars if bar.rank in ranks and bar.row not in NOT_DRAWN and bar.end > begin and bar.start < end]
    places = dict.fromkeys((bar.rank, bar.row) for bar in sorted(seen, key=lambda bar: bar.rank))
    large = [place for place in places if place[1] in ROWS or _seconds(seen, place) >= LEAST_SHARE * (end - begin)]
    heights = {place: index + 0.5 * list(ranks).index(place[0]) for index, place in enumerate(large)}
    for (rank, row), height in heights.items():
        own = [bar for bar in seen if (bar.rank, bar.row) == (rank, row)]
        pieces = [(1e3 * (max(bar.start, begin) - begin), 1e3 * (min(bar.end, end) - max(bar.start, begin))) for bar in own]
        axes.broken_barh(pieces, (height - 0.4, 0.8), facecolors=[_colour(bar) for bar in own], linewidth=0)
    several = len(ranks) > 1
    axes.set_yticks(
        list(heights.values()), [f"rank {rank}: {row}" if several else row for rank, row in heights], parse_math=False
    )
    for step in [bar for bar in bars if bar.row == "step" and bar.rank == bars[0].rank and begin < bar.end < end]:
        axes.axvline(1e3 * (step.end - begin), color="#8a8f98", linewidth=0.6, linestyle=":")
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1e3 * (end - begin))
    axes.set_xlabel("time (ms); dotted: the ends of rank 0’s steps")


def _seconds(bars: Sequence[Bar], place: tuple[int, str]) -> float:
    return sum(bar.end - bar.start for bar in bars if (bar.rank, bar.row) == place)


def _colour(bar: Bar) -> str:
    return SHADES.get(bar.name) or SHADES.get(bar.row.split(" (")[0]) or NETWORK
