"""What a round of gossip costs over shaped links: its time against its bytes by the bandwidth, and how much of it is hidden.

    sudo python simulations/gossip_overlap.py [--workers 2 4 8] [--bandwidths 100mbit 50mbit 20mbit] [--repeats 3]
                                              [--folder FOLDER]

Each run is one of `disttrain emulate` with ``--step-time``: real exchanges of real sizes, and sleep in place of forward and
backward, so that there may be more workers than cores. Workers mix 1.4 MB of parameters with one peer's (one_peer_exponential)
after every step, by dpsgd in either order. With, per step and as the median over repeats,

    C   compute: all that is not a wait for the network, of combine_while_adapt
    M   the exchange alone: wire_bytes by the bandwidth that a bare all-reduce measures before each run
    E   the exchange as it was: what adapt_then_combine, which hides nothing, waits for, the median of a run's intervals: on a
        busy machine a worker that is not served in time is waited for, too

it is checked that

    bytes     a worker sends as many in a round of 8 as of 2; and the interface's counter agrees within 3 %
    round     E is M, but for a tenth: what it waits for is the link
    overlap   combine_while_adapt waits for less than 5 % of a step, on average, where M ≤ C; elsewhere for M − C, but for a tenth
              of M.

Latency is not emulated. Writes docs/gossip_overlap.json. With --folder runs are kept there, and not made again. Some twenty
minutes a repeat, slower the busier the machine is, whose load is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from emulated_runs import EmulatedRun, emulate, machine, verdict
from overlap import CONFIG, DOCS

HIDDEN, WAITED = ORDERS = ("combine_while_adapt", "adapt_then_combine")
LOG_EVERY = 5
TOLERANCE = 0.1
"""Of M."""


@dataclass(frozen=True)
class Row:
    """Some workers at a bandwidth; seconds and bytes are of a step, medians over repeats."""

    workers: int
    bandwidth: str
    measured: float
    """Bits per second."""
    wire_bytes: float
    """Sent by a worker."""
    compute: float
    """C."""
    communication: float
    """M."""
    exchange: float
    """E."""
    exposed: float
    """What combine_while_adapt waited for, typically."""
    exposed_share: float
    """Of its step, on average."""
    exposed_shares: list[float]
    """By repeat."""
    interface: float
    """Bytes at worker 0's interface by its ``wire_bytes``."""
    load: list[float]
    """The least and the most that was seen before or after a run."""


def main() -> None:
    """Run, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--bandwidths", nargs="+", default=["100mbit", "50mbit", "20mbit"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--step-time", type=float, default=0.2, help="seconds")
    parser.add_argument("--steps", type=int, default=40, help="of a run, the first and the last few included")
    parser.add_argument("--folder", type=Path, help="where runs are kept, and found again; left out: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(CONFIG)
        rows = measure(options, folder)
    verdicts = judge(rows)
    report = {"machine": machine(), "config": CONFIG.strip().splitlines(), "step_seconds": options.step_time,
              "repeats": options.repeats, "rows": [asdict(row) for row in rows], "verdicts": verdicts}  # fmt: skip
    (DOCS / "gossip_overlap.json").write_text(json.dumps(report, indent=1) + "\n")


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """All runs, the repeats of one as far from each other as can be; and their table."""
    runs: dict[tuple[int, str, str], list[EmulatedRun]] = {}
    for repeat in range(options.repeats):
        for workers in options.workers:
            for bandwidth in options.bandwidths:
                for order in ORDERS:
                    made = run(workers, bandwidth, order, repeat, options, folder)
                    runs.setdefault((workers, bandwidth, order), []).append(made)
    rows = [row(n, b, runs[n, b, HIDDEN], runs[n, b, WAITED]) for n in options.workers for b in options.bandwidths]
    print(f"{'workers':>7} {'link':>8} {'measured':>13} {'bytes':>10} {'C':>6} {'M':>6} {'E':>6} {'E/M':>6} {'exposed':>15} "
          f"{'interface':>9} {'load':>11}")  # fmt: skip
    print(*map(line, rows), sep="\n", flush=True)
    return rows


def run(workers: int, bandwidth: str, order: str, repeat: int, options: argparse.Namespace, folder: Path) -> EmulatedRun:
    """One run."""
    print(f"  {workers} workers at {bandwidth}, {order}, repeat {repeat}", flush=True)
    place = folder / f"{order}-{workers}-{bandwidth}-{options.step_time}-{options.steps}-{repeat}"
    overrides = ["strategy.name=dpsgd", f"strategy.order={order}", "strategy.topology.name=one_peer_exponential",
                 f"training.steps={options.steps}", f"recording.log_every={LOG_EVERY}", "training.batch_size=8"]  # fmt: skip
    step_time = ["--step-time", f"{options.step_time * 1e3:g}ms"]
    return emulate(place, folder / "config.yaml", workers, bandwidth, [*step_time, *overrides])


def row(workers: int, bandwidth: str, hidden: Sequence[EmulatedRun], waited: Sequence[EmulatedRun]) -> Row:
    """Figures of the repeats in both orders.

    What is sent is asked where it is waited for: beside forward and backward, a record may come before its step's exchange.
    """

    def of(runs: Sequence[EmulatedRun], figure: Callable[[EmulatedRun], float]) -> float:
        return median(figure(each) for each in runs)

    both = [*hidden, *waited]
    measured, wire_bytes = of(both, lambda each: each.measured), of(waited, lambda each: each.wire_bytes)
    shares = [each.exposed_seconds / each.step_seconds for each in hidden]
    return Row(
        workers=workers,
        bandwidth=bandwidth,
        measured=measured,
        wire_bytes=wire_bytes,
        compute=of(hidden, lambda each: each.compute_seconds),
        communication=8 * wire_bytes / measured,
        exchange=of(waited, typical_wait),
        exposed=of(hidden, typical_wait),
        exposed_share=median(shares),
        exposed_shares=shares,
        interface=of(both, lambda each: each.interface_ratio or 0.0),
        load=[min(min(each.load) for each in both), max(max(each.load) for each in both)],
    )


def typical_wait(run: EmulatedRun) -> float:
    """For the network, of a step: the median of the run's intervals."""
    return median(each["exposed_seconds"] / each["step"] for each in run.steady)


def line(row: Row) -> str:
    """A row of the table."""
    shares = f"{row.exposed_share:.2%} (≤ {max(row.exposed_shares):.1%})"
    return (f"{row.workers:>7} {row.bandwidth:>8} {row.measured / 1e6:>6.2f} Mbit/s {row.wire_bytes:>10,.0f} {row.compute:>6.3f} "
            f"{row.communication:>6.3f} {row.exchange:>6.3f} {row.exchange / row.communication:>6.3f} {shares:>15} "
            f"{row.interface:>9.4f} {row.load[0]:>5.1f} {row.load[1]:>5.1f}")  # fmt: skip


def judge(rows: Sequence[Row]) -> list[str]:
    """What the module's docstring says is checked."""
    sent, counted = [row.wire_bytes for row in rows], [row.interface for row in rows]
    workers = sorted({row.workers for row in rows})
    verdicts = [
        verdict(max(sent) <= 1.001 * min(sent), f"bytes: a worker sends {min(sent):,.0f} to {max(sent):,.0f} a round, "
                                                f"among {', '.join(map(str, workers))} alike"),
        verdict(all(abs(each - 1) < 0.03 for each in counted), f"bytes: the interface counts {min(counted):.4f} to "
                                                               f"{max(counted):.4f} times as many, within 3%"),
    ]  # fmt: skip
    for row in rows:
        where, M, C = f"{row.workers} workers, {row.bandwidth}", row.communication, row.compute
        verdicts.append(verdict(abs(row.exchange - M) < TOLERANCE * M, f"round, {where}: E {row.exchange:.3f} s is "
                                f"{row.exchange / M:.3f} M"))  # fmt: skip
        if M <= C:
            text = f"overlap, {where}: exposed {row.exposed_share:.2%} < 5% of a step, for M {M:.3f} ≤ C {C:.3f} s"
            verdicts.append(verdict(row.exposed_share < 0.05, text))
        else:
            text = f"overlap, {where}: waited {row.exposed:.3f} s, and M − C is {M - C:.3f} s"
            verdicts.append(verdict(abs(row.exposed - (M - C)) < TOLERANCE * M, text))
    return verdicts


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("gossip_overlap.py: needs root, as `disttrain emulate` does")
    main()
