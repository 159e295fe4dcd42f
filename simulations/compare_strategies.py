"""The quickstart under strategies that meet in every step, or never: what each one's loss costs in bytes.

    python simulations/compare_strategies.py [--steps 500] [--workers 2] [--seeds 1] [--strategies ddp local ...]

Prints a table and draws docs/strategies.png. Every run sees the same data in the same order; only the strategy differs. About two
minutes a run on two cores. Those that work in rounds are compared by co2.py.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from disttrain.recording.plot import plot_loss
from disttrain.recording.report import RunRecord, read_run
from disttrain.recording.report.curves import SENT, STEPS
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
        losses = [run.summary["validation_loss"] for run in seeds]
        waiting = statistics.mean(run.summary["exposed_seconds"] / run.summary["seconds"] for run in seeds)
        megabytes = seeds[0].summary["wire_bytes"] / 1e6
        print(f"{name:<16} {statistics.mean(losses):>16.4f} {megabytes:>13,.1f} MB {waiting:>8.1%}")
    draw([seeds[0] for seeds in runs.values()])
    print(f"drawn: {PICTURE.relative_to(ROOT)}")


def train(title: str, strategy: list[str], seed: int, options: argparse.Namespace, parent: Path) -> RunRecord:
    """One run."""
    folder = parent / f"{title}-{seed}"
    overrides = [*strategy, f"training.seed={seed}", f"training.steps={options.steps}", f"run.directory={folder}"]
    command = [sys.executable, "-m", "disttrain.cli", "train", ROOT / "configs/quickstart.yaml", "--workers", options.workers]
    subprocess.run([*map(str, command), *overrides], check=True, stdout=subprocess.DEVNULL)
    return read_run(folder, title)


def draw(runs: list[RunRecord]) -> None:
    """Validation loss against steps, and against bytes: two of the figures of `disttrain report`."""
    PICTURE.parent.mkdir(exist_ok=True)
    plot_loss(runs, PICTURE, [STEPS, SENT])


if __name__ == "__main__":
    main()
