"""How much of the communication each strategy hides behind emulated compute, over links from fast to slow.

    sudo python simulations/overlap.py [--workers 2] [--rounds 20] [--folder FOLDER]

Every strategy at every bandwidth is a run of `disttrain emulate` with ``--step-time``: real exchanges of real sizes, and sleep in
place of forward and backward, so that there may be more workers than cores. All have the same period τ; a "round" of ddp is τ
steps too. With

    C   compute of a round: of strategy.name=local, which sends nothing; optimizer and records included. It is run once for
        every bandwidth, among the others, and the smallest median counts: what a busy machine adds is not compute
    M   communication of a round, alone: wire_bytes by the bandwidth that a bare all-reduce measures before each run
    T   the round, by the median over rounds; the first, with the start-up, is left out, and so is the last, whose record
        is written after the final checkpoint

ideal is max(C, M), compute utilisation C/T. The drain, the last exchange that nothing can hide, is counted apart, and in "whole":
all rounds but the first, drain included, by their number. Prints a table of all runs; the bandwidth that each strategy needs for
50 to 99 % utilisation, in the layout of table 4 of "Streaming DiLoCo" (arXiv 2501.18512), between measured points by straight
lines of T over 1/bandwidth: T is convex there, so what is said to be needed is rather too much; and whether CO2 holds

    whole round ≤ 1.05 · max(C, M) + M / rounds          exposed communication < 3 % of a round where M ≤ C.

Latency is not emulated. Writes docs/overlap.json and draws docs/overlap.png. With --folder runs are kept there, and not made
again. About twenty minutes for two workers; slower the busier the machine is, whose load is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emulated_runs import EmulatedRun, emulate, machine, verdict
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
# 1.4 MB: a collective of 0.12 s at 100 Mbit/s.
CONFIG = """
model: {name: plm, width: 96, layers: 3, heads: 4}
data: {name: python_source, sequence_length: 32, max_bytes: 400kB, validation_ratio: 0.2}
optimizer: {name: sgd, lr: 0.1}
training: {batch_size: 8, validate_every: 0, validation_batches: 1}
launch: {threads: 1}
"""
STRATEGIES = ("ddp", "local_sgd", "diloco", "streaming_diloco", "co2")
COLORS = dict(zip(STRATEGIES, ("k", "C2", "C0", "C4", "C3"), strict=True))
TARGETS = (0.5, 0.8, 0.9, 0.95, 0.99)
DDP_ROUNDS = 3
"""A round of ddp has τ exchanges to measure."""


@dataclass(frozen=True)
class Row:
    """A strategy at a bandwidth; seconds are of a round, unless they say otherwise."""

    workers: int
    bandwidth: str
    strategy: str
    measured: float
    """Bits per second."""
    rounds: int
    """In ``whole``."""
    step: float
    """Of a step, with its part of the round's exposed communication."""
    compute: float
    """C."""
    communication: float
    """M."""
    lane: float | None
    """What the lane's jobs took, a wait for the slowest worker included; None of ddp."""
    round: float
    """T."""
    exposed: float
    """Waited for the network."""
    drain: float
    """Once, at the end."""
    whole: float
    """All rounds with the drain, by their number."""
    interface: float | None
    """Bytes at the interface by ``wire_bytes``."""
    load: list[float]

    @property
    def ideal(self) -> float:
        """If all that can overlap did."""
        return max(self.compute, self.communication)

    @property
    def bound(self) -> float:
        """What the whole round is compared with: the ideal, and its part of the drain."""
        return self.ideal + self.drain / self.rounds

    @property
    def utilisation(self) -> float:
        """CU."""
        return self.compute / self.round

    @property
    def exposed_share(self) -> float:
        """Of a round."""
        return self.exposed / self.round


def main() -> None:
    """Run, compare, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2], help="how many; several for several tables")
    parser.add_argument("--bandwidths", nargs="+", default=["400mbit", "100mbit", "20mbit", "10mbit", "5mbit"])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--period", type=int, default=8, help="τ")
    parser.add_argument("--step-time", type=float, default=0.1, help="seconds")
    parser.add_argument("--rounds", type=int, default=20, help="of a run, the first and the last included")
    parser.add_argument("--folder", type=Path, help="where runs are kept, and found again; left out: a temporary one")
    parser.add_argument("--output", type=Path, default=DOCS, help="where overlap.json and overlap.png go")
    options = parser.parse_args()
    if options.rounds < 4:
        parser.error("--rounds: at least 4, for the first and the last are left out")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(CONFIG)
        rows = [row for workers in options.workers for row in measure(workers, options, folder)]
    conclude(rows, options)


def measure(workers: int, options: argparse.Namespace, folder: Path) -> list[Row]:
    """All strategies at all bandwidths, as a table."""
    print(f"\n{workers} workers, τ = {options.period}, steps of {options.step_time * 1e3:g} ms emulated compute, "
          f"{options.rounds} rounds (ddp: {DDP_ROUNDS})", flush=True)  # fmt: skip
    runs = {(b, s): run(s, workers, b, options, folder) for b in options.bandwidths for s in ("local", *options.strategies)}
    alone = [options.period * runs[bandwidth, "local"].step_seconds for bandwidth in options.bandwidths]
    print(f"C by bandwidth: {', '.join(f'{each:.3f}' for each in alone)} s; the smallest counts. Seconds of a round:")
    print(f"{'link':>8} {'measured':>13} {'strategy':<17} {'step':>7} {'C':>7} {'M':>7} {'lane':>7} {'ideal':>7} {'round':>7} "
          f"{'exposed':>8} {'CU':>7} {'drain':>7} {'whole':>7} {'/bound':>7} {'interface':>9} {'load':>9}")  # fmt: skip
    rows = [row(s, each, b, min(alone), options.period) for (b, s), each in runs.items() if s != "local"]
    print(*map(line, rows), sep="\n", flush=True)
    return rows


def run(strategy: str, workers: int, bandwidth: str, options: argparse.Namespace, folder: Path) -> EmulatedRun:
    """One run; a record for every round, under ddp for every step."""
    rounds, log_every = (DDP_ROUNDS, 1) if strategy == "ddp" else (options.rounds, options.period)
    overrides = [f"strategy.name={strategy}", f"training.steps={rounds * options.period}", f"recording.log_every={log_every}"]
    if strategy not in ("ddp", "local"):
        overrides.append(f"strategy.period={options.period}")
    place = folder / f"{strategy}-{workers}-{bandwidth}-{options.period}x{options.step_time}-{rounds}"
    step_time = f"{options.step_time * 1e3:g}ms"
    print(f"  {strategy} at {bandwidth}", flush=True)
    return emulate(place, folder / "config.yaml", workers, bandwidth, ["--step-time", step_time, *overrides])


def row(strategy: str, run: EmulatedRun, bandwidth: str, compute: float, period: int) -> Row:
    """A run's figures, per round of ``period`` steps."""
    steady, steps = run.steady, sum(each["step"] for each in run.steady)
    lane = sum(each["communication_seconds"] for each in steady) / steps if "communication_seconds" in steady[-1] else None
    return Row(
        workers=run.report["workers"],
        bandwidth=bandwidth,
        strategy=strategy,
        measured=run.measured,
        rounds=(run.records[-1]["step"] - run.records[0]["step"]) // period,
        step=run.step_seconds,
        compute=compute,
        communication=period * run.wire_bytes * 8 / run.measured,
        lane=None if lane is None else period * lane,
        round=period * run.step_seconds,
        exposed=period * run.exposed_seconds,
        drain=run.drain_seconds,
        whole=period * run.whole_step_seconds,
        interface=run.interface_ratio,
        load=run.load,
    )


def line(row: Row) -> str:
    """A row of the table of all runs."""
    lane = "" if row.lane is None else f"{row.lane:.3f}"
    return (f"{row.bandwidth:>8} {row.measured / 1e6:>6.2f} Mbit/s {row.strategy:<17} {row.step:>7.4f} {row.compute:>7.3f} "
            f"{row.communication:>7.3f} {lane:>7} {row.ideal:>7.3f} {row.round:>7.3f} {row.exposed_share:>8.1%} "
            f"{row.utilisation:>7.1%} {row.drain:>7.3f} {row.whole:>7.3f} {row.whole / row.bound:>7.3f} "
            f"{row.interface or 0:>9.4f} {row.load[0]:>4.1f} {row.load[1]:>4.1f}")  # fmt: skip


def conclude(rows: list[Row], options: argparse.Namespace) -> None:
    """The table of what is needed, the verdicts, and the files."""
    tables = {workers: needed(rows, workers, options) for workers in options.workers}
    for text in tables.values():
        print(f"\n{text}\n")
    verdicts = [each for row in rows if row.strategy == "co2" for each in judge(row)]
    report = {
        "machine": machine(),
        "config": CONFIG.strip().splitlines(),
        "period": options.period,
        "step_seconds": options.step_time,
        "rows": [asdict(row) | {"utilisation": row.utilisation, "exposed_share": row.exposed_share} for row in rows],
        "needed": tables,
        "verdicts": verdicts,
    }
    (options.output / "overlap.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(rows, options.output / "overlap.png")
    print(f"written: {options.output / 'overlap.json'}, {options.output / 'overlap.png'}")


def judge(row: Row) -> list[str]:
    """What the issue asks of CO2, at one bandwidth."""
    where = f"co2, {row.workers} workers, {row.bandwidth}"
    most = 1.05 * row.ideal + row.communication / row.rounds
    lines = [verdict(row.whole <= most, f"{where}: round with drain {row.whole:.3f} s ≤ 1.05 · max(C {row.compute:.3f}, "
                     f"M {row.communication:.3f}) + M/{row.rounds} = {most:.3f} s; without drain {row.round:.3f}")]  # fmt: skip
    if row.communication <= row.compute:
        lines.append(verdict(row.exposed_share < 0.03, f"{where}: exposed {row.exposed_share:.2%} < 3% of a round, for M ≤ C"))
    else:
        print(f"      {where}: M > C, so {row.exposed_share:.1%} is exposed; no strategy could hide more than C of it")
    return lines


# --- the bandwidth that a utilisation needs ------------------------------------------------------------------------------------


def needed(rows: list[Row], workers: int, options: argparse.Namespace) -> str:
    """Table 4's layout, as Markdown."""
    title = f"{workers} workers, 1.4 MB, step {options.step_time:g} s, τ {options.period}"
    lines = [f"Mbit/s (measured, not nominal) for a compute utilisation of …; {title}",
             "| strategy | " + " | ".join(f"{target:.0%}" for target in TARGETS) + " |",
             "| --- |" + " --- |" * len(TARGETS)]  # fmt: skip
    for strategy in options.strategies:
        points = [(row.measured, row.utilisation) for row in rows if (row.workers, row.strategy) == (workers, strategy)]
        lines.append(f"| {strategy} | " + " | ".join(bandwidth_needed(points, target) for target in TARGETS) + " |")
    return "\n".join(lines)


def bandwidth_needed(points: Sequence[tuple[float, float]], target: float) -> str:
    """Mbit/s for a utilisation; ``<`` or ``>`` where the measured points do not reach so far.

    Args:
        points: bits per second and utilisation, in any order.
        target: utilisation in (0, 1).
    """
    slower = None
    for bandwidth, utilisation in sorted(points):
        if utilisation >= target:
            if slower is None:
                return f"< {bandwidth / 1e6:.1f}"
            return f"{between(slower, (bandwidth, utilisation), target) / 1e6:.1f}"
        slower = bandwidth, utilisation
    return f"> {max(points)[0] / 1e6:.0f}"


def between(slow: tuple[float, float], fast: tuple[float, float], target: float) -> float:
    """Where the straight line of round time (the inverse of utilisation) over 1/bandwidth meets the target."""
    share = (1 / target - 1 / fast[1]) / (1 / slow[1] - 1 / fast[1])
    return 1 / (1 / fast[0] + share * (1 / slow[0] - 1 / fast[0]))


def draw(rows: list[Row], picture: Path) -> None:
    """Utilisation, and round time by the ideal, against measured bandwidth; a row of panels for each number of workers."""
    counts = sorted({row.workers for row in rows})
    figure = Figure(figsize=(11, 4.2 * len(counts)), layout="constrained")
    for workers, (left, right) in zip(counts, figure.subplots(len(counts), 2, squeeze=False), strict=True):
        for strategy in STRATEGIES:
            own = sorted((row for row in rows if (row.workers, row.strategy) == (workers, strategy)), key=lambda r: r.measured)
            megabits = [row.measured / 1e6 for row in own]
            style: dict[str, Any] = {"color": COLORS[strategy], "markersize": 4, "label": strategy}
            left.plot(megabits, [row.utilisation for row in own], "o-", **style)
            right.plot(megabits, [row.round / row.ideal for row in own], "o-", **style)
        left.set(ylabel="compute utilisation C/T", ylim=(0, 1.05), title=f"{workers} workers, emulated compute")
        right.set(ylabel="round T by max(C, M)", title="1: all that can overlap does")
        right.axhline(1.05, color="k", linewidth=0.5, linestyle=":")
        for axes in (left, right):
            axes.set(xscale="log", xlabel="measured bandwidth (Mbit/s)")
            axes.grid(alpha=0.3)
        left.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("overlap.py: needs root, as `disttrain emulate` does")
    main()
