"""What a thin link leaves of the speed of a training with real compute: CO2 beside DDP, DDP in fp16 and DiLoCo.

    sudo python simulations/thin_link.py [--budget 60] [--rounds 12] [--period 48] [--folder FOLDER]

The quickstart's PLM on two emulated hosts of one core each: one thread a worker, and every worker's process with all its threads,
the lane's and gloo's too, is bound to a core of its own. The same run without a network is strategy.name=local; it stands before
the others at each bandwidth, and all are repeated, in turn, until ``--budget`` minutes are spent, at least twice. What is said
is of medians over the repetitions, and with it stands the range of the repetitions' own ratios.

Tokens per second are of a whole training, the first eight steps left out: ``--rounds`` rounds of τ steps, and the drain at their
end. Left out are the final checkpoint and validation, whose time the last steps' record holds too: these eight steps count as so
much compute as others, and what they waited for the network. Under ddp and ddp_cast a step is like any other, and at 10 Mbit/s
takes seconds: they make 48 steps at 100 Mbit/s and 24 at 10 Mbit/s, which is scaled.

Local workers do not meet, so local's figures are of worker 0; the others' workers go at the pace of the slowest.

Targets: CO2's tokens per second ≥ 0.95 of the same run's without a network at 100 Mbit/s, ≥ 0.92 at 10 Mbit/s. Prints every
run with the machine's load average before and after it, then medians and verdicts; writes docs/thin_link.json. Latency is not
emulated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from emulated_runs import EmulatedRun, emulate, machine, verdict

ROOT = Path(__file__).parents[1]
LOG_EVERY = 8
STRATEGIES = {
    "local": ["strategy.name=local"],
    "co2": ["strategy.name=co2"],
    "diloco": ["strategy.name=diloco"],
    "ddp_cast fp16": ["strategy.name=ddp_cast", "strategy.dtype=fp16"],
    "ddp": ["strategy.name=ddp"],
}
DDP_STEPS = {"100mbit": 48, "10mbit": 24}
TARGETS = {"100mbit": 0.95, "10mbit": 0.92}
LEAST_REPETITIONS = 2


@dataclass(frozen=True)
class Result:
    """One run."""

    repetition: int
    bandwidth: str
    strategy: str
    measured: float
    """Bits per second."""
    steps: int
    tokens_per_second: float
    """Of all workers, drain included."""
    compute: float
    """Of a step, seconds by the median."""
    exposed: float
    """Waited for the network, per step of the whole training, drain included; seconds."""
    drain: float
    """Seconds, once."""
    interface: float | None
    """Bytes at the interface by ``wire_bytes``."""
    load: list[float]


def main() -> None:
    """Train, print, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=60, help="minutes")
    parser.add_argument("--rounds", type=int, default=12, help="of a run (default 12)")
    parser.add_argument("--period", type=int, default=48, help=f"τ, a multiple of {LOG_EVERY} (default 48)")
    parser.add_argument("--bandwidths", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES)[1:], choices=list(STRATEGIES)[1:])
    parser.add_argument("--folder", type=Path, help="where runs are kept, and found again; left out: a temporary one")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="where thin_link.json goes")
    options = parser.parse_args()
    if options.period % LOG_EVERY or options.rounds < 2:
        parser.error(f"--period must be a multiple of {LOG_EVERY}, --rounds at least 2")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two hosts of one core each need two cores")
    print(f"2 workers of one core each, τ = {options.period}, {options.rounds} rounds; ddp and ddp_cast: {DDP_STEPS} steps")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        results = train_all(options, folder)
    conclude(results, options)


def train_all(options: argparse.Namespace, folder: Path) -> list[Result]:
    """Repetition after repetition, each of all strategies at all bandwidths, while there is time for another."""
    print(f"{'run':<5} {'link':>8} {'measured':>13} {'strategy':<14} {'steps':>5} {'tokens/s':>9} {'compute':>9} {'exposed':>9} "
          f"{'drain':>7} {'interface':>9} {'load':>9}", flush=True)  # fmt: skip
    results: list[Result] = []
    start = time.monotonic()
    for repetition in range(sys.maxsize):
        for bandwidth in options.bandwidths:
            for strategy in ("local", *options.strategies):
                results.append(train(repetition, bandwidth, strategy, options, folder))
                print(line(results[-1]), flush=True)
        each = (time.monotonic() - start) / (repetition + 1)
        if repetition + 1 >= LEAST_REPETITIONS and time.monotonic() - start + each > 60 * options.budget:
            return results
    return results


def train(repetition: int, bandwidth: str, strategy: str, options: argparse.Namespace, folder: Path) -> Result:
    """One run."""
    by_step = strategy.startswith("ddp")
    steps = DDP_STEPS[bandwidth] if by_step else options.rounds * options.period
    periods = [] if by_step or strategy == "local" else [f"strategy.period={options.period}"]
    overrides = [
        *STRATEGIES[strategy], *periods, f"training.steps={steps}", "training.validate_every=0", "training.validation_batches=1",
        "checkpoint.every=0", f"recording.log_every={LOG_EVERY}", "launch.threads=1",
    ]  # fmt: skip
    place = folder / f"{repetition}-{bandwidth}-{strategy.replace(' ', '-')}-{steps}-{options.period}"
    run = emulate(place, ROOT / "configs/quickstart.yaml", 2, bandwidth, overrides, pin=True)
    return result(repetition, bandwidth, strategy, run)


def result(repetition: int, bandwidth: str, strategy: str, run: EmulatedRun) -> Result:
    """A run's figures."""
    first, last = run.records[0], run.records[-1]
    tokens = (last["tokens"] - first["tokens"]) / (last["step"] - first["step"])
    return Result(
        repetition=repetition,
        bandwidth=bandwidth,
        strategy=strategy,
        measured=run.measured,
        steps=last["step"],
        tokens_per_second=tokens / run.whole_step_seconds,
        compute=run.compute_seconds,
        exposed=(last["exposed_seconds"] - first["exposed_seconds"]) / (last["step"] - first["step"]),
        drain=run.drain_seconds,
        interface=run.interface_ratio,
        load=run.load,
    )


def line(result: Result) -> str:
    """A row of the table of all runs."""
    interface = "" if result.interface is None else f"{result.interface:.4f}"
    compute, exposed = result.compute * 1e3, result.exposed * 1e3
    return (f"{result.repetition:<5} {result.bandwidth:>8} {result.measured / 1e6:>6.2f} Mbit/s {result.strategy:<14} "
            f"{result.steps:>5} {result.tokens_per_second:>9,.0f} {compute:>6.1f} ms {exposed:>6.1f} ms {result.drain:>5.2f} s "
            f"{interface:>9} {result.load[0]:>4.1f} {result.load[1]:>4.1f}")  # fmt: skip


def conclude(results: list[Result], options: argparse.Namespace) -> None:
    """Medians, verdicts, and the file."""
    repetitions = 1 + max(result.repetition for result in results)
    print(f"\nmedians of {repetitions} repetitions, by the same bandwidth's local; in brackets the repetitions' own ratios")
    print("| strategy | " + " | ".join(f"{bandwidth} | of local" for bandwidth in options.bandwidths) + " |")
    print("| --- |" + " ---: | ---: |" * len(options.bandwidths))
    ratios = {}
    for strategy in ("local", *options.strategies):
        cells = []
        for bandwidth in options.bandwidths:
            speed, ratio, least, most = compared(results, strategy, bandwidth)
            ratios[f"{strategy}, {bandwidth}"] = {"tokens_per_second": speed, "of_local": ratio, "range": [least, most]}
            cells.append(f"{speed:,.0f} | {ratio:.3f} [{least:.3f}, {most:.3f}]")
        print(f"| {strategy} | {' | '.join(cells)} |")
    print()
    verdicts = []
    if "co2" in options.strategies:
        for bandwidth in options.bandwidths:
            ratio, target = compared(results, "co2", bandwidth)[1], TARGETS[bandwidth]
            verdicts.append(verdict(ratio >= target, f"co2 at {bandwidth}: {ratio:.3f} of local's tokens/s, to be ≥ {target}"))
    report = {
        "machine": machine(),
        "period": options.period,
        "rounds": options.rounds,
        "ddp_steps": DDP_STEPS,
        "repetitions": repetitions,
        "medians": ratios,
        "verdicts": verdicts,
        "runs": list(map(asdict, results)),
    }
    (options.output / "thin_link.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {options.output / 'thin_link.json'}")


def compared(results: list[Result], strategy: str, bandwidth: str) -> tuple[float, float, float, float]:
    """Median tokens per second, their ratio to local's, and the least and the largest ratio within one repetition."""
    own, local = (
        {r.repetition: r.tokens_per_second for r in results if (r.strategy, r.bandwidth) == (name, bandwidth)}
        for name in (strategy, "local")
    )
    ratios = [speed / local[repetition] for repetition, speed in own.items()]
    speed = statistics.median(own.values())
    return speed, speed / statistics.median(local.values()), min(ratios), max(ratios)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("thin_link.py: needs root, as `disttrain emulate` does")
    main()
