"""Watches the workers of one start until all have ended, by themselves or because they were told to; never for ever."""

from __future__ import annotations

import time
from pathlib import Path

from disttrain.emulation.stop_line import StopLine
from disttrain.emulation.timeline import Timeline
from disttrain.emulation.workers import Workers
from disttrain.launch.ending import Ending, ending_by_signal, ending_of
from disttrain.launch.shutdown import DONE, FAILED, STOPPED

GRACE_SECONDS = 5.0
"""For the others to notice that one has failed, and to say so."""
STOP_SECONDS = 30.0
"""For all to save and stop; as torch's agent allows."""


def supervise(workers: Workers, timeline: Timeline, stop: StopLine, folder: Path, timeout: float) -> Ending:
    """How this start ended; none of its workers is left.

    Args:
        workers: just started.
        timeline: what happens to them.
        stop: somebody may ask them to stop.
        folder: the run folder.
        timeout: seconds of ``launch.timeout``: once a worker is done, the others get that long.
    """
    started, first_done = time.time(), float("inf")
    while True:
        codes = workers.exit_codes()
        if any(codes.values()):
            return _after_failure(workers, folder)
        if len(codes) == len(workers):
            return Ending(DONE)
        if codes:
            first_done = min(first_done, time.monotonic())
        if time.monotonic() - first_done > max(timeout, STOP_SECONDS):
            return _never_done(workers)
        if stop.signal is not None:
            workers.ask_to_stop(STOP_SECONDS)
            return ending_by_signal(stop.signal, folder, started)
        if ending := timeline.advance(workers):
            workers.kill()
            return ending
        time.sleep(0.02)


def _after_failure(workers: Workers, folder: Path) -> Ending:
    """One ended badly: whoever does not follow is killed, and can be the culprit too, for it may have been frozen."""
    first = [code for code in workers.exit_codes().values() if code]
    workers.wait(STOP_SECONDS if first[0] == STOPPED else GRACE_SECONDS)
    by_themselves = workers.exit_codes()
    workers.kill()
    codes = by_themselves | workers.exit_codes()  # in the order of ending
    return ending_of({rank: code for rank, code in codes.items() if code}, folder)


def _never_done(workers: Workers) -> Ending:
    late = min(set(range(len(workers))) - workers.exit_codes().keys())
    workers.kill()
    return Ending(FAILED, f"rank {late} failed: the others were done, and it did not follow within launch.timeout", final=False)
