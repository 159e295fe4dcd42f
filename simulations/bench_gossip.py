"""Worker-steps per second of simulated gossip, and how far its mixing is from what the memory could do.

    python simulations/bench_gossip.py [--workers 100 1000 4000] [--turns 7]

The 4,810-parameter MLP on digits, 16 samples a step and worker, SGD with momentum, gradients by vmap; dpsgd mixes after every
step with one peer (one_peer_exponential, adapt_then_combine). A round must at least read every worker's parameters, read its
peer's and write the sum:

    bound = 3 · workers · parameters · 4 B / bandwidth of a copy of 256 MB, which is read and written

Sizes take turns with the copy in one process of one thread; medians. All seconds are the processor's, so that a busy machine
counts as little as can be: other processes take nothing but their part of cache and memory bandwidth, as they do from the copy.
THP_MEM_ALLOC_ENABLE=1, a setting of torch, spares the system most of the work of handing out fresh memory.

Writes docs/gossip_bench.json; with that setting, docs/gossip_bench_huge_pages.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch
from bench_simulation import prepare
from emulated_runs import machine

from disttrain.launch.start import start_cpu
from disttrain.simulation.run import Simulation

COPY_FLOATS = 64_000_000
BATCH = 16
GOSSIP = ("strategy.name=dpsgd", "strategy.order=adapt_then_combine", "strategy.topology.name=one_peer_exponential")


@dataclass
class Turns:
    """Seconds of one number of workers, by turn."""

    step: list[float] = field(default_factory=list)
    """Of all workers."""
    round: list[float] = field(default_factory=list)
    """The mixing in it."""
    bound: list[float] = field(default_factory=list)
    """Of the round, by the bandwidth of the same turn."""
    schedule: list[float] = field(default_factory=list)
    """To find out who talks to whom, a part of the round."""


@dataclass(frozen=True)
class Row:
    """Medians over the turns."""

    workers: int
    step_seconds: float
    round_seconds: float
    schedule_seconds: float
    bound_seconds: float
    times_the_bound: float
    """The median of the turns' ratios."""
    share_of_step: float
    worker_steps_per_second: float

    @classmethod
    def of(cls, workers: int, turns: Turns) -> Row:
        """A number of workers' figures."""
        return cls(
            workers,
            median(turns.step),
            median(turns.round),
            median(turns.schedule),
            median(turns.bound),
            median(a / b for a, b in zip(turns.round, turns.bound, strict=True)),
            median(a / b for a, b in zip(turns.round, turns.step, strict=True)),
            workers / median(turns.step),
        )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[100, 1000, 4000])
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    start_cpu(1, 1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        turns, bandwidths = measure(options.workers, options.turns, Path(folder))
    rows = [Row.of(workers, own) for workers, own in turns.items()]
    huge = os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
    print(f"copy {median(bandwidths) / 1e9:.1f} GB/s; load {load:.0f} to {os.getloadavg()[0]:.0f}; huge pages: {huge}")
    print(f"{'workers':>7} {'step':>10} {'round':>10} {'schedule':>10} {'bound':>10} {'times':>6} {'share':>6} {'steps/s':>8}")
    for row in rows:
        print(f"{row.workers:>7,} {1e3 * row.step_seconds:>7.1f} ms {1e3 * row.round_seconds:>7.2f} ms "
              f"{1e3 * row.schedule_seconds:>7.2f} ms {1e3 * row.bound_seconds:>7.2f} ms {row.times_the_bound:>6.1f} "
              f"{row.share_of_step:>6.0%} {row.worker_steps_per_second:>8,.0f}")  # fmt: skip
    report = {"machine": machine(), "load": [load, os.getloadavg()[0]], "copy_bytes_per_second": median(bandwidths),
              "huge_pages": huge, "rows": [asdict(row) for row in rows]}  # fmt: skip
    name = "gossip_bench_huge_pages.json" if huge else "gossip_bench.json"
    (Path(__file__).parents[1] / "docs" / name).write_text(json.dumps(report, indent=1) + "\n")


def measure(workers: list[int], num_turns: int, folder: Path) -> tuple[dict[int, Turns], list[float]]:
    """Seconds by number of workers, and the bandwidth in bytes per second, of every turn but the first."""
    simulations, turns, bandwidths = {}, {n: Turns() for n in workers}, []
    for n in workers:
        (folder / str(n)).mkdir()
        simulations[n] = prepare(n, [*GOSSIP, f"training.batch_size={BATCH * n}", "launch.threads=1"], folder / str(n), "vmap")
    source, target = torch.ones(COPY_FLOATS), torch.zeros(COPY_FLOATS)
    for turn in range(num_turns + 1):
        for n, simulation in simulations.items():
            bandwidth = 2 * 4 * COPY_FLOATS / seconds(lambda: target.copy_(source))
            mine = turns[n] if turn else Turns()
            mine.bound.append(least_bytes(n, simulation) / bandwidth)
            step(simulation, mine)
            if turn:
                bandwidths.append(bandwidth)
    return turns, bandwidths


def least_bytes(workers: int, simulation: Simulation) -> int:
    """What a round must move."""
    return 3 * workers * 4 * simulation._replicas.layout.numel


def step(simulation: Simulation, turns: Turns) -> None:
    """One step of all workers, with a clock around its round."""
    strategy = simulation._strategy
    mix = strategy.after_step
    strategy.after_step = lambda: turns.round.append(seconds(mix))  # type: ignore[method-assign]
    turns.step.append(seconds(simulation.step))
    strategy.after_step = mix  # type: ignore[method-assign]
    turns.schedule.append(seconds(strategy.round_due))  # type: ignore[attr-defined]


def seconds(job: Callable[[], object]) -> float:
    """Of the processor, in this process."""
    start = time.process_time()
    job()
    return time.process_time() - start


if __name__ == "__main__":
    main()
