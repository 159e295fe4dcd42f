"""The process inside the namespaces, PID 1 there: makes the network, measures it, runs the workers and reports.

Its argument is a :class:`~disttrain.emulation.plan.Plan` as JSON; its standard input is a
:class:`~disttrain.emulation.stop_line.StopLine`. When it ends, the kernel ends everything that it has made.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import NoReturn

from disttrain.emulation.bandwidth import describe
from disttrain.emulation.calibration import Calibration, calibrate
from disttrain.emulation.events import when
from disttrain.emulation.network import Network, NetworkError
from disttrain.emulation.plan import Plan
from disttrain.emulation.report import Happened, last_step, readable_bits, report
from disttrain.emulation.stop_line import StopLine
from disttrain.emulation.supervision import supervise
from disttrain.emulation.timeline import Timeline
from disttrain.emulation.workers import Workers
from disttrain.launch.ending import Ending, start_until_final
from disttrain.launch.shutdown import FAILED, USERS_MISTAKE, leave

FIRST_PORT = 29_500


def main() -> NoReturn:
    """Run the plan and leave the process by the exit code of the run."""
    plan, stop = Plan.model_validate_json(sys.argv[1]), StopLine(sys.stdin)
    try:
        code = run(plan, stop)
    except NetworkError as error:
        print(f"disttrain: {error}", file=sys.stderr)
        code = FAILED
    leave(code)


def run(plan: Plan, stop: StopLine) -> int:
    """The whole emulation; returns the exit code.

    Raises:
        NetworkError: if the network cannot be made, or carries nothing.
    """
    folder = Path(plan.directory)
    network = Network(plan.links)
    links = describe(plan.links)
    print(f"network   {plan.workers} workers on a bridge, links {links}; bandwidth is emulated, latency is not", flush=True)
    calibration = calibrate(network, plan.links, folder / "logs", stop)
    if stop.signal is not None:
        print(f"disttrain: stopped by {stop.signal} before training began", file=sys.stderr)
        return FAILED
    _announce(plan, calibration)
    after_step = last_step(plan)
    timeline, starts, began = Timeline(plan.events, network, folder), 0, time.monotonic()

    def start(arguments: list[str]) -> Ending:
        nonlocal starts
        port, starts = FIRST_PORT + starts, starts + 1
        workers = Workers(network, plan.workers, ["disttrain.worker", *arguments], folder / "logs", port)
        return supervise(workers, timeline, stop, folder, plan.timeout)

    try:
        code = start_until_final(start, plan.config, plan.overrides, folder, plan.max_restarts)
    except NetworkError as error:  # in an event; whatever runs still ends with this process
        print(f"disttrain: {error}", file=sys.stderr)
        code = FAILED
    for event in timeline.pending:
        print(f"warning: the run ended before this could happen: {when(event)}: {event}", flush=True)
    if code != USERS_MISTAKE:
        happened = Happened(timeline.happened, starts - 1, time.monotonic() - began)
        report(plan, calibration, happened, code, after_step)
    return code


def _announce(plan: Plan, calibration: Calibration | None) -> None:
    if calibration is None:
        print("measured  nothing: one worker needs no network", flush=True)
        return
    nominal = min(link.slowest for link in plan.links)
    share = calibration.bits_per_second / nominal
    slowest = "" if len({link.slowest for link in plan.links}) == 1 else "the slowest link, which governs, "
    print(f"measured  {slowest}{readable_bits(calibration.bits_per_second)} by a bare all-reduce, {share:.1%} of nominal "
          f"(frame headers take 4%)", flush=True)  # fmt: skip
    if not 0.88 <= share <= 1.12:
        print("warning: the links are not what they should be; is the machine busy?", flush=True)


if __name__ == "__main__":
    main()
