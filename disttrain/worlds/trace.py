"""What a worker does when: spans of time on named rows, kept for a window of steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

MOST_SPANS = 100_000
"""Of a worker: about 20 MB. What comes later is counted, and dropped."""
SHORTEST_SECONDS = 5e-6
"""Of a span that is kept: a wait for what has come already is none."""
LAST_LOOKED_AT = 1000
"""Spans, at most, that are looked through for those of the present step."""


class Span(NamedTuple):
    """Something that a worker did.

    Attributes:
        row: compute, optimizer, a lane …
        name: of what was done.
        start: by ``time.perf_counter()``, in seconds.
        end: by the same.
    """

    row: str
    name: str
    start: float
    end: float


class Trace:
    """The spans of a window of steps; lanes and training loop add theirs from their own threads.

    Args:
        first: step of the window, from 0.
        steps: that it is long.

    Attributes:
        spans: in the order of their ends.
        dropped: spans beyond :data:`MOST_SPANS`.
        epoch: seconds since 1970 at which this process's ``time.perf_counter()`` was 0: what joins the workers' clocks.
    """

    def __init__(self, first: int, steps: int) -> None:
        self.first, self.last = first, first + steps
        self.spans: list[Span] = []
        self.dropped = 0
        self.epoch = time.time() - time.perf_counter()
        self._open = first == 0
        self._step_began = time.perf_counter()
        self._lock = threading.Lock()

    def add(self, row: str, name: str, start: float, end: float) -> None:
        """Keep a span, if the window is open now."""
        if not self._open or end - start < SHORTEST_SECONDS:
            return
        with self._lock:
            if len(self.spans) < MOST_SPANS:
                self.spans.append(Span(row, name, start, end))
            else:
                self.dropped += 1

    @contextmanager
    def during(self, row: str, name: str) -> Iterator[None]:
        """Keep the time inside it."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(row, name, start, time.perf_counter())

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after ``step``."""
        self._open, self._step_began = self.first <= step < self.last, time.perf_counter()

    def end_step(self, step: int) -> None:
        """``step`` steps are made: the window may open, or close, before the next."""
        now = time.perf_counter()
        self.add("step", f"step {step}", self._step_began, now)
        self._open, self._step_began = self.first <= step < self.last, now

    def fill(self, row: str, name: str) -> None:
        """Keep the time since the step began, if nothing was kept on ``row`` since: a loop that is not ours does not say more."""
        if not any(span.row == row and span.end > self._step_began for span in reversed(self.spans[-LAST_LOOKED_AT:])):
            self.add(row, name, self._step_began, time.perf_counter())
