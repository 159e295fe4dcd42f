"""What an emulated run took, and what its links explain of it: on the console, and as ``emulation.json`` in the run folder."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from disttrain.emulation.bandwidth import describe
from disttrain.emulation.calibration import Calibration
from disttrain.emulation.plan import Plan
from disttrain.recording.folder import RunFolder, write_atomically
from disttrain.recording.metrics import read_metrics
from disttrain.recording.progress import readable_bytes


class Happened(NamedTuple):
    """What the workers' own records do not tell."""

    events: int
    """Of the script, those that came about."""
    restarts: int
    wall_seconds: float
    """From the first start of the workers to the last one's end; time and bytes that a failure wasted are in no record."""


def last_step(plan: Plan) -> int:
    """The last step of which the run folder has a record; 0 if there is none."""
    return max((record["step"] for record in _records(plan)), default=0)


def report(plan: Plan, calibration: Calibration | None, happened: Happened, code: int, after_step: int) -> None:
    """Write and print what is known of a run that has ended, well or not.

    Args:
        plan: of the run.
        calibration: before it.
        happened: meanwhile.
        code: the run's exit code.
        after_step: up to which an earlier start, over other links perhaps, had come.
    """
    folder = RunFolder(Path(plan.directory))
    records = [record for record in _records(plan) if record["step"] > after_step]
    facts = {
        "exit_code": code,
        "workers": plan.workers,
        "compute": plan.compute,
        "nominal": describe(plan.links),
        "nominal_bits_per_second": min(link.slowest for link in plan.links),
        "measured_bits_per_second": None if calibration is None else calibration.bits_per_second,
        "calibration_seconds": None if calibration is None else calibration.seconds,
        "events": happened.events,
        "restarts": happened.restarts,
        "wall_seconds": happened.wall_seconds,
    } | steps(records, None if calibration is None else calibration.bits_per_second)
    write_atomically(folder.path / "emulation.json", json.dumps(facts, indent=2) + "\n")
    for line in lines(facts):
        print(line, flush=True)


def steps(records: list[dict[str, Any]], bits_per_second: float | None) -> dict[str, Any]:
    """What the records of a run say of a step; empty if there are fewer than two.

    Times are medians over the intervals between records, so that the first step, validations and checkpoints do not count;
    bytes are the mean over all of them.

    Args:
        records: of ``metrics.jsonl``.
        bits_per_second: measured; None with one worker.

    Returns:
        ``compute_seconds`` is a step without its exposed communication; ``predicted_communication_seconds`` is bytes by
        bandwidth: a step that overlaps nothing takes the sum of both, one that overlaps all the larger.
    """
    if len(records) < 2:
        return {}
    first, last = records[0], records[-1]
    seconds = [_rate("seconds", a, b) for a, b in pairwise(records)]
    wire_bytes = _rate("wire_bytes", first, last)
    keys = ("wire_bytes", "interface_sent_bytes", "interface_received_bytes")
    facts = {
        "steps": last["step"],
        "median_step_seconds": statistics.median(seconds),
        "wire_bytes_per_step": wire_bytes,
        "predicted_communication_seconds": wire_bytes * 8 / bits_per_second if bits_per_second else None,
    } | {key: last[key] for key in keys if key in last}
    if last["exposed_seconds"] is None:  # on a GPU
        return facts
    exposed = [_rate("exposed_seconds", a, b) for a, b in pairwise(records)]
    return facts | {
        "compute_seconds": statistics.median(s - e for s, e in zip(seconds, exposed, strict=True)),
        "exposed_seconds": statistics.median(exposed),
        "exposed_share": last["exposed_seconds"] / last["seconds"],
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """The report as a person reads it, aligned with the summary above it."""
    measured, workers = facts["measured_bits_per_second"], facts["workers"]
    bandwidth = f", measured {readable_bits(measured)}" if measured else ""
    text = [f"emulated         {workers} workers, links {facts['nominal']}{bandwidth}; compute is {facts['compute']}"]
    if facts["restarts"]:
        text.append(f"restarts         {facts['restarts']}; {facts['wall_seconds']:.1f} s from the first start to the end. "
                    "Seconds and bytes of steps that were made again are in no other figure")  # fmt: skip
    if "steps" not in facts:
        return text
    text.append(f"step             {_milliseconds(facts['median_step_seconds'])} by the median")
    if "exposed_seconds" in facts:
        compute, exposed = _milliseconds(facts["compute_seconds"]), _milliseconds(facts["exposed_seconds"])
        text[-1] += f": compute {compute}, exposed communication {exposed}"
        text.append(f"exposed share    {facts['exposed_share']:.1%} of the run")
    if (predicted := facts["predicted_communication_seconds"]) is not None:
        sent = readable_bytes(facts["wire_bytes_per_step"])
        text.append(f"bytes            {sent} sent per step and worker: {_milliseconds(predicted)} at the measured bandwidth")
    if "interface_sent_bytes" in facts and facts["wire_bytes"]:
        ratio = facts["interface_sent_bytes"] / facts["wire_bytes"]
        text.append(f"interface        sent {readable_bytes(facts['interface_sent_bytes'])}, "
                    f"{ratio:.3f} of what wire_bytes says ({readable_bytes(facts['wire_bytes'])})")  # fmt: skip
    return text


def readable_bits(rate: float) -> str:
    """``94_600_000.0`` as ``94.6 Mbit/s``."""
    unit, factor = next((u, f) for u, f in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)) if rate >= f or f == 1e3)
    return f"{rate / factor:.3g} {unit}"


def _records(plan: Plan) -> list[dict[str, Any]]:
    metrics = RunFolder(Path(plan.directory)).metrics
    return list(read_metrics(metrics)) if metrics.exists() else []


def _rate(key: str, before: dict[str, Any], after: dict[str, Any]) -> float:
    """Increase of a count from one record to the next, per step."""
    return float(after[key] - before[key]) / int(after["step"] - before["step"])


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
