"""What the links really carry, measured before the run by a bare all-reduce: predictions rest on it, not on the nominal rate."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from disttrain.emulation.bandwidth import Link
from disttrain.emulation.network import Network, NetworkError
from disttrain.emulation.stop_line import StopLine
from disttrain.emulation.workers import Workers

PORT = 29_400
REPEATS = 3
SECONDS_EACH = 1.5
LEAST_BYTES, MOST_BYTES = 65_536, 2**28
LIMIT_SECONDS = 180.0


@dataclass(frozen=True)
class Calibration:
    """The outcome."""

    wire_bytes: int
    """Sent by each worker, and received, in one all-reduce."""
    seconds: list[float]
    """Of each repeat."""

    @property
    def bits_per_second(self) -> float:
        """By the median: payload bits through the slowest link; frame headers are not counted, so it is 4 % below nominal."""
        return self.wire_bytes * 8 / statistics.median(self.seconds)


def payload_bytes(links: Sequence[Link]) -> int:
    """Bytes of an all-reduce that takes about :data:`SECONDS_EACH`, at the slowest nominal rate; a multiple of 4."""
    wire_bytes = min(link.slowest for link in links) / 8 * SECONDS_EACH
    payload = wire_bytes * len(links) / (2 * (len(links) - 1))
    return int(min(max(payload, LEAST_BYTES), MOST_BYTES)) // 4 * 4


def calibrate(network: Network, links: Sequence[Link], logs: Path, stop: StopLine) -> Calibration | None:
    """Measure; None if there is only one worker, or if ``stop`` came in between.

    The ring passes all data through every link, so the slowest one governs.

    Raises:
        NetworkError: if the all-reduce failed, or took longer than :data:`LIMIT_SECONDS`.
    """
    if len(links) == 1:
        return None
    payload, folder = payload_bytes(links), logs / "calibration"
    folder.mkdir(exist_ok=True)
    reading, writing = os.pipe()
    command = ["disttrain.emulation.bare_all_reduce", str(payload), str(REPEATS)]
    workers = Workers(network, len(links), command, folder, PORT, output=writing)
    os.close(writing)
    done = _wait(workers, stop)
    workers.kill()
    with os.fdopen(reading) as pipe:
        printed = pipe.read()
    if stop.signal is not None:
        return None
    if not done or any(workers.exit_codes().values()):
        raise NetworkError(f"the calibration failed; its logs are in {folder}")
    return Calibration(**json.loads(printed))


def _wait(workers: Workers, stop: StopLine) -> bool:
    """Whether all ended by themselves, in time."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline and stop.signal is None and not any(workers.exit_codes().values()):
        if workers.wait(0.1):
            return True
    return False
