"""The quickstart under strategies that meet in every step, or never: what each one's loss costs in bytes.

    python simulations/compare_strategies.py [--steps 500] [--workers 2] [--seeds 1] [--strategies ddp local ...]

Prints a table and draws docs/strategies.png. Every run sees the same data in the same order; only the strategy differs. About two
minutes a run on two cores. Those that work in rounds are compared by co2.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from disttrain.recording.metrics import read_metrics
from disttrain.strategies import strategies

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "strategies.png"
SETTINGS = {
    "compressed": {"compressed, int8": ["strategy.compressor.name=int8"], "compressed, 1 %": ["strategy.compressor.ratio=0.01"]}
}
"""What is run of a strategy beside its defaults."""
EVERY_STEP = ["compressed", "ddp", "ddp_cast", "local"]


def main() -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--strategies", nargs="+", default=EVERY_STEP, choices=strategies.names())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            title: [train(title, [f"strategy.name={name}", *own], seed, options, Path(folder)) for seed in range(options.seeds)]
            for name in options.strategies
            for title, own in SETTINGS.get(name, {name: []}).items()
        }
    print(f"{options.steps} steps, {options.workers} workers, mean of seeds 0 to {options.seeds - 1}")
    print(f"{'strategy':<16} {'validation loss':>16} {'sent per worker':>16} {'waiting':>8}")
    for name, seeds in runs.items():
        losses = [summary["validation_loss"] for _, summary in seeds]
        waiting = statistics.mean(summary["exposed_seconds"] / summary["seconds"] for _, summary in seeds)
        megabytes = seeds[0][1]["wire_bytes"] / 1e6
        print(f"{name:<16} {statistics.mean(losses):>16.4f} {megabytes:>13,.1f} MB {waiting:>8.1%}")
    draw({name: seeds[0][0] for name, seeds in runs.items()})
    print(f"drawn: {PICTURE.relative_to(ROOT)}")


def train(
    title: str, strategy: list[str], seed: int, options: argparse.Namespace, parent: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One run; its records and summary."""
    folder = parent / f"{title}-{seed}"
    overrides = [*strategy, f"training.seed={seed}", f"training.steps={options.steps}", f"run.directory={folder}"]
    command = [sys.executable, "-m", "disttrain.cli", "train", ROOT / "configs/quickstart.yaml", "--workers", options.workers]
    subprocess.run([*map(str, command), *overrides], check=True, stdout=subprocess.DEVNULL)
    return list(read_metrics(folder / "metrics.jsonl")), json.loads((folder / "summary.json").read_text())


def draw(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Loss against steps, and against bytes."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, records in runs.items():
        points = [record for record in records if record.get("validation_loss") is not None]
        losses = [record["validation_loss"] for record in points]
        left.plot([record["step"] for record in points], losses, "o-", markersize=4, label=name)
        right.plot([record["wire_bytes"] / 1e6 for record in points], losses, "o-", markersize=4, label=name)
    left.set(xlabel="step", ylabel="validation loss (nats per byte)")
    right.set(xlabel="sent per worker (MB)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
