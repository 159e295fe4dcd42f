"""Federated algorithms on handwritten digits: accuracy, and rounds, bytes and gradients to 90 %, for two ways to divide the data.

    python simulations/federated_digits.py [--budget 90] [--algorithms fedavg scaffold ...] [--partitions shards ...] [--seeds 3]

100 clients of the 4,810-parameter MLP, ten in a round, ten local steps of five samples, 300 rounds. Learning rates are chosen on
seed 0, by the mean accuracy of the last 20 rounds; the best are run on all seeds. Prints a table, and writes
docs/federated_digits.json. Results are kept in runs/federated_digits, so that a second call goes on where the first has stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from disttrain.config import load_config
from disttrain.launch.shutdown import StopRequest
from disttrain.recording.folder import RunFolder
from disttrain.recording.metrics import read_metrics
from disttrain.simulation.federated.run import FederatedRun
from disttrain.simulation.run import Diverged

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "federated_digits.json"
KEPT = Path("runs") / "federated_digits"
COMMON = ("training.validate_every=1", "recording.log_every=1000", "launch.threads=1")
PARTITIONS = {
    "shards": ("partition={name: shards, per_worker: 2}",),
    "client_dirichlet": ("partition={name: client_dirichlet, alpha: 1.0}",),  # 0.1 for each of ten classes
}


@dataclass(frozen=True)
class Entry:
    """An algorithm's settings, and which learning rates are tried."""

    algorithm: str
    """The section ``federated.algorithm``, without ``server_lr``."""
    lrs: Sequence[float] = (0.03, 0.1, 0.3)
    server_lrs: Sequence[float] = (1.0,)
    more: Sequence[str] = ()
    """Other settings."""


ENTRIES = {
    "fedavg": Entry("name: fedavg"),
    "fedprox": Entry("name: fedprox, mu: 0.1"),
    "fedadam": Entry("name: fedadam", server_lrs=(0.01, 0.03)),
    "scaffold": Entry("name: scaffold", server_lrs=(1.0, 3.0)),
    "scafcom top-10 %": Entry("name: scafcom, beta: 0.2, compressor: {name: top_k, ratio: 0.1}", server_lrs=(1.0, 3.0)),
    "scallion rand-10 %": Entry(
        "name: scallion, alpha: 0.1, compressor: {name: rand_k, ratio: 0.1, unbiased: true}", server_lrs=(1.0, 3.0)
    ),
    "scafcom": Entry("name: scafcom, beta: 0.2", server_lrs=(1.0, 3.0)),
    "scafcom top-1 %": Entry("name: scafcom, beta: 0.2, compressor: {name: top_k, ratio: 0.01}", server_lrs=(1.0, 3.0)),
    "fedamd {1, 0}": Entry("name: fedamd_sequential, period: 2"),
    "fedamd p=.2": Entry("name: fedamd, probability: 0.2"),
    "fedamd p=.5": Entry("name: fedamd, probability: 0.5"),
    "fedamd p=.84": Entry("name: fedamd, probability: 0.84"),
    "mifa": Entry("name: mifa", server_lrs=(1.0, 3.0)),
    "feddyn": Entry("name: feddyn, alpha: 0.1", server_lrs=()),  # which has none
    "rerce": Entry("name: rerce, rho: 0.1", server_lrs=()),
    "curriculum": Entry("name: fedavg", more=["federated.ordering.name=curriculum"]),
    "anti-curriculum": Entry("name: fedavg", more=["federated.ordering.name=anti_curriculum"]),
    "random order": Entry("name: fedavg", more=["federated.ordering.name=random"]),
    "easy clients first": Entry("name: fedavg", more=["federated.participation.name=curriculum"]),
    "hard clients first": Entry("name: fedavg", more=["federated.participation.name=anti_curriculum"]),
}


@dataclass(frozen=True)
class Result:
    """One run.

    Args:
        accuracy: mean of the last 20 rounds; 0 if it diverged.
        rounds: to a mean of 90 % over three rounds; None: never.
        megabytes_up: until then.
        gradients: of single samples, until then.
    """

    entry: str
    partition: str
    lr: float
    server_lr: float | None
    seed: int
    accuracy: float
    rounds: int | None
    megabytes_up: float | None
    gradients: int | None


def main() -> None:
    """Tune, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=90, help="minutes after which no further run is begun (default 90)")
    parser.add_argument("--algorithms", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--partitions", nargs="+", default=list(PARTITIONS), choices=list(PARTITIONS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    deadline, cells, left_out = time.monotonic() + 60 * options.budget, [], []
    for partition in options.partitions:
        print(partition)
        print(f"{'algorithm':<20} {'lr':>5} {'server':>6} {'accuracy':>14} {'rounds to 90 %':>18} {'MB up':>7} {'gradients':>10}")
        for name in options.algorithms:
            results = cell(name, partition, options.seeds, deadline)
            if len(results) < options.seeds:
                left_out.append(f"left out for lack of time: {name}, {partition}, {options.seeds - len(results)} seeds")
            if results:
                cells += results
                print(line(name, results), flush=True)
    print("\n".join(left_out))
    save(cells)


def save(cells: Sequence[Result]) -> None:
    """docs/federated_digits.json: what was computed now in place of what stood there for the same rows; the others stay."""
    before = [Result(**each) for each in json.loads(RESULTS.read_text())] if RESULTS.exists() else []
    renewed = {(result.entry, result.partition) for result in cells}
    rows = [*(result for result in before if (result.entry, result.partition) not in renewed), *cells]
    rows.sort(key=lambda row: (list(PARTITIONS).index(row.partition), list(ENTRIES).index(row.entry), row.seed))
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def cell(name: str, partition: str, seeds: int, deadline: float) -> list[Result]:
    """The best learning rates' results, one for each seed that there was time for."""
    entry, tried = ENTRIES[name], []
    for lr in entry.lrs:
        for server_lr in entry.server_lrs or (None,):
            if (result := train(name, partition, lr, server_lr, 0, deadline)) is None:
                return []
            tried.append(result)
    best = max(tried, key=lambda result: result.accuracy)
    more = (train(name, partition, best.lr, best.server_lr, seed, deadline) for seed in range(1, seeds))
    return [best, *(result for result in more if result is not None)]


def train(name: str, partition: str, lr: float, server_lr: float | None, seed: int, deadline: float) -> Result | None:
    """One run, or what is kept of it; None if there is no time left."""
    kept = KEPT / f"{name.replace(' ', '_')}-{partition}-{lr:g}-{server_lr}-{seed}.json"
    if kept.exists():
        return Result(**json.loads(kept.read_text()))
    if time.monotonic() > deadline:
        return None
    own = f", server_lr: {server_lr}" if server_lr is not None else ""
    overrides = [f"federated.algorithm={{{ENTRIES[name].algorithm}{own}}}", f"federated.lr={lr}", f"training.seed={seed}"]
    folder = RunFolder(KEPT / "run")
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.claim(resume=False)
    loaded = load_config(ROOT / "configs" / "federated.yaml", [*COMMON, *PARTITIONS[partition], *ENTRIES[name].more, *overrides])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Diverged):
        FederatedRun(loaded, folder, StopRequest()).run()
    assert loaded.config.federated is not None
    result = Result(name, partition, lr, server_lr, seed, *measure(folder, loaded.config.federated.rounds))
    kept.write_text(json.dumps(asdict(result)))
    return result


def measure(folder: RunFolder, rounds: int) -> tuple[float, int | None, float | None, int | None]:
    """Accuracy at the end, and what it took to 90 %."""
    records = list(read_metrics(folder.metrics)) if folder.metrics.exists() else []
    accuracies = [record["validation_accuracy"] for record in records]
    final = statistics.mean(accuracies[-20:]) if len(records) == rounds else 0.0
    for number in range(2, len(records)):
        if statistics.mean(accuracies[number - 2 : number + 1]) >= 0.9:
            there = records[number]
            return final, number + 1, there["bytes_up"] / 1e6, there["gradient_evaluations"]
    return final, None, None, None


def line(name: str, results: Sequence[Result]) -> str:
    """A row of the table."""
    accuracies = [100 * result.accuracy for result in results]
    spread = statistics.stdev(accuracies) if len(results) > 1 else 0.0
    rounds = "/".join("never" if result.rounds is None else str(result.rounds) for result in results)
    up = [result.megabytes_up for result in results if result.megabytes_up is not None]
    gradients = [result.gradients for result in results if result.gradients is not None]
    first = results[0]
    return (
        f"{name:<20} {first.lr:>5g} {first.server_lr or '':>6} {statistics.mean(accuracies):>7.1f} ± {spread:<4.1f} {rounds:>18} "
        f"{statistics.mean(up) if up else float('nan'):>7.1f} {statistics.mean(gradients) if gradients else float('nan'):>10,.0f}"
    )


if __name__ == "__main__":
    main()
