"""Error feedback on the optimizer's update instead of on gradients: how near to DDP, at which share of its bytes?

    python simulations/compressed_updates.py [--steps 500] [--seeds 1] [--budget 90] [--folder runs/compressed_updates]

The quickstart's PLM on 2 workers under AdamW and Muon: strategy ``local_sgd`` with rounds of H steps and a compressor for what a
round has changed, against ``ddp`` at equal steps. Prints a table and writes docs/compressed_updates.json. Two workers are
simulated as rows, which costs half and computes the same; their bytes are counted as on the wire.
Runs that the folder has already are not made again; what the budget (in minutes) does not allow is named.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "compressed_updates.json"
OPTIMIZERS = {
    "adamw": ("optimizer.name=adamw", "optimizer.lr=4e-3"),
    "muon": ("optimizer.name=muon",),  # at the quickstart's rates
}


@dataclass(frozen=True)
class Exchange:
    """What is sent of a round: ``ratio`` of each block of 256, as ``values``; or everything, by the compressor ``values``."""

    period: int
    ratio: float | None
    values: str

    @property
    def name(self) -> str:
        """For the table, and a folder."""
        kept = "all" if self.ratio is None else f"{round(self.ratio * 256)} of 256"
        return f"H = {self.period}, {kept} as {self.values}"

    def overrides(self) -> list[str]:
        """Of the quickstart's config."""
        own = [f"strategy.period={self.period}"]
        if self.ratio is None:
            name, *settings = self.values.split(" ")
            return [*own, f"strategy.compressor.name={name}", *(f"strategy.compressor.{each}" for each in settings)]
        block = ("strategy.compressor.name=block_top_k", "strategy.compressor.block=256")
        return [*own, *block, f"strategy.compressor.ratio={self.ratio}", f"strategy.compressor.values={self.values}"]


FEW = 24 / 256
EXCHANGES = (  # in the order of their importance
    Exchange(8, FEW, "bf16"),
    Exchange(4, FEW, "int8"),
    Exchange(16, None, "int8"),
    Exchange(2, 12 / 256, "int8"),
    Exchange(1, 3 / 256, "bf16"),
    Exchange(8, None, "identity"),
)


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", type=float, default=90.0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "compressed_updates")
    options = parser.parse_args()
    deadline, longest = time.monotonic() + 60 * options.budget, 0.0
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    left_out = []
    for exchange in (None, *EXCHANGES):
        for optimizer in OPTIMIZERS:
            for seed in range(options.seeds):
                title, start = "ddp" if exchange is None else exchange.name, time.monotonic()
                folder = options.folder / f"{title} {optimizer} {options.steps} {seed}".replace(" ", "_")
                if start + longest > deadline and not (folder / "summary.json").exists():
                    left_out.append(f"{title} under {optimizer}, seed {seed}")
                    continue
                runs.setdefault((title, optimizer), []).append(train(exchange, optimizer, seed, options.steps, folder))
                longest = max(longest, time.monotonic() - start)
    report(runs, left_out, options.steps)


def train(exchange: Exchange | None, optimizer: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """The summary of a run, unless the folder has it already."""
    if not (folder / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        strategy = ["strategy.name=ddp"] if exchange is None else ["strategy.name=local_sgd", *exchange.overrides()]
        own = [*OPTIMIZERS[optimizer], *strategy, f"training.seed={seed}", f"training.steps={steps}", f"run.directory={folder}",
               "checkpoint.every=0", "launch.threads=1"]  # fmt: skip
        command = [sys.executable, "-m", "disttrain.cli", "simulate", str(ROOT / "configs/quickstart.yaml"), "--workers", "2"]
        subprocess.run([*command, "--gradients", "loop", *own], check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    print(f"{time.strftime('%H:%M:%S')} {folder.name}: {summary['validation_loss']:.4f}", flush=True)
    return summary


def report(runs: dict[tuple[str, str], list[dict[str, Any]]], left_out: list[str], steps: int) -> None:
    """The table, and the same as JSON."""
    rows = []
    for (title, optimizer), seeds in runs.items():
        loss = statistics.mean(summary["validation_loss"] for summary in seeds)
        reference = statistics.mean(summary["validation_loss"] for summary in runs["ddp", optimizer])
        share = seeds[0]["wire_bytes"] / seeds[0]["ddp_wire_bytes"]
        rows.append({"exchange": title, "optimizer": optimizer, "validation_loss": loss, "behind_ddp": loss - reference,
                     "share_of_ddp_bytes": share, "seeds": len(seeds)})  # fmt: skip
    print(f"\n{steps} steps, 2 workers\n{'exchange':<28} {'optimizer':<9} {'loss':>7} {'behind ddp':>11} {'bytes of ddp':>13}")
    for row in rows:
        print(f"{row['exchange']:<28} {row['optimizer']:<9} {row['validation_loss']:>7.4f} {row['behind_ddp']:>+11.4f} "
              f"{row['share_of_ddp_bytes']:>13.2%}")  # fmt: skip
    for each in left_out:
        print(f"left out for lack of time: {each}")
    RESULTS.write_text(json.dumps({"steps": steps, "workers": 2, "rows": rows, "left_out": left_out}, indent=1) + "\n")
    print(f"written: {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
