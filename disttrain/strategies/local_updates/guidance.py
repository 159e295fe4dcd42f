"""How long a round must be for its exchange to be hidden behind it."""

from __future__ import annotations

import math

from disttrain.worlds.traffic import all_reduce_wire_bytes


def suggest_period(payload_bytes: int, num_workers: int, bits_per_second: float, step_seconds: float) -> int:
    """The least τ whose local steps take as long as a round's all-reduce: τ = ⌈8 · wire bytes / (bandwidth · step time)⌉.

    With a delay of a whole round (co2, predicted_mean …) nobody waits then. Without any, waiting takes half of the time at this
    τ, and less as 1 / τ.

    Args:
        payload_bytes: of a worker's delta: 4 for each parameter, or what the compressor makes of it.
        num_workers: that exchange.
        bits_per_second: of a worker's link, as measured.
        step_seconds: of a local step, as measured.

    Raises:
        ValueError: unless all are positive.
    """
    if min(payload_bytes, num_workers, bits_per_second, step_seconds) <= 0:
        raise ValueError(
            "payload_bytes, num_workers, bits_per_second and step_seconds must be positive, got "
            f"{payload_bytes}, {num_workers}, {bits_per_second} and {step_seconds}"
        )
    seconds = 8 * all_reduce_wire_bytes(payload_bytes, num_workers) / bits_per_second
    return max(1, math.ceil(seconds / step_seconds))
