"""``trace.json``: what each worker did when, for https://ui.perfetto.dev or chrome://tracing, which both work offline.

The format is Chrome's "Trace Event Format": a process for each rank, a thread for each row, and complete events in microseconds.
Every worker writes its part beside; the first of a folder joins them at the end.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from disttrain.recording.folder import RunFolder, write_atomically
from disttrain.worlds.trace import Span, Trace

ROWS = ("step", "compute", "optimizer", "strategy", "exposed communication")
"""From the top; lanes follow, then the rest."""
PATIENCE_SECONDS = 10.0
POLL_SECONDS = 0.05
TOUCHING = 1e-4
"""Seconds by which spans may overlap and still share a row, the later one shortened: clocks are read one after the other."""


def write_part(directory: Path, rank: int, trace: Trace) -> None:
    """Write a worker's spans, in microseconds of its clock, for :func:`join_parts`; since 1970 there are too many to tell spans
    apart by a float."""
    rows = [{"row": row, "spans": list(map(_span, spans))} for row, spans in _rows(trace.spans)]
    directory.mkdir(exist_ok=True)
    part = {"dropped": trace.dropped, "epoch": trace.epoch, "rows": rows}
    write_atomically(directory / f"{rank}.json", json.dumps(part))


def join_parts(directory: Path, ranks: Sequence[int], folder: RunFolder, patience: float = PATIENCE_SECONDS) -> list[int]:
    """Write ``trace.json`` of the parts that come in time, and remove them; returns the ranks whose did not."""
    deadline = time.monotonic() + patience
    while (missing := [rank for rank in ranks if not _part(directory, rank).exists()]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    parts = {rank: json.loads(_part(directory, rank).read_text()) for rank in ranks if rank not in missing}
    dropped = {f"rank {rank}": part["dropped"] for rank, part in parts.items() if part["dropped"]}
    first = min((part["epoch"] for part in parts.values()), default=0.0)
    events = [event for rank, part in parts.items() for event in _events(rank, part["rows"], 1e6 * (part["epoch"] - first))]
    origin = min((event["ts"] for event in events if "ts" in event), default=0.0)
    for event in events:
        if "ts" in event:
            event["ts"] = round(event["ts"] - origin, 3)
    document = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"dropped": dropped, "missing_ranks": missing}}
    write_atomically(folder.trace, json.dumps(document))
    shutil.rmtree(directory, ignore_errors=True)
    return missing


def _part(directory: Path, rank: int) -> Path:
    return directory / f"{rank}.json"


def _span(span: Span) -> tuple[str, float, float]:
    return span.name, span.start * 1e6, (span.end - span.start) * 1e6


def _rows(spans: Sequence[Span]) -> Iterator[tuple[str, list[Span]]]:
    """The spans of each row, in order; those that overlap go to a row of the same name and a number."""
    named: dict[str, list[list[Span]]] = {}
    for span in sorted(spans, key=lambda each: each.start):
        rows = named.setdefault(span.row, [])
        free = next((row for row in rows if row[-1].end <= min(span.start + TOUCHING, span.end)), None)
        if free is None:
            rows.append([span])
        else:
            free.append(span._replace(start=max(span.start, free[-1].end)))
    for name in sorted(named, key=_place):
        for number, row in enumerate(named[name], 1):
            yield name if number == 1 else f"{name} ({number})", row


def _place(row: str) -> tuple[int, str]:
    if row in ROWS:
        return ROWS.index(row), ""
    return len(ROWS) + (not row.startswith(("lane", "all-reduce"))), row


def _events(rank: int, rows: Sequence[dict[str, Any]], ahead: float) -> Iterator[dict[str, Any]]:
    """Of a worker whose clock began so many microseconds after the first one's."""
    yield {"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank}"}}
    yield {"ph": "M", "pid": rank, "name": "process_sort_index", "args": {"sort_index": rank}}
    for thread, row in enumerate(rows):
        where = {"pid": rank, "tid": thread}
        yield {"ph": "M", **where, "name": "thread_name", "args": {"name": row["row"]}}
        yield {"ph": "M", **where, "name": "thread_sort_index", "args": {"sort_index": thread}}
        for name, start, duration in row["spans"]:
            yield {"ph": "X", **where, "name": name, "ts": start + ahead, "dur": round(duration, 3)}
