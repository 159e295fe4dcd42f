"""CO2 and its family: loss at equal tokens, what the penalty is worth, and a rule beyond the papers.

    python simulations/co2.py [--budget 90] [--at-once 2] [--folder FOLDER]

All by ``disttrain simulate``, 4 workers as rows of one process, with exchanges after every τ steps:

1. A classifier of 3,500 parameters on the classes that a random network draws, 1,200 steps, τ of 12 and 48. The inner learning
   rate is the best of three for DDP, and everybody's. Of most methods one setting is tuned on seed 0, for each τ: the outer
   momentum, of Overlap-Local-SGD the pull, of clipped CO2 the clip. Then three seeds.
2. The quickstart's PLM with its Muon and its batches, four sequences of 128 a worker and step, 720 steps, τ = 12:
   60 rounds. What decides has three seeds, the others one. That predicted_mean leads by one round, waits for its first ten and
   has the pull and the smoothing that it has came of seed 0 (and of a search on a smaller PLM): the other two are its test.
DDP sees the same batches and averages gradients in every step: tokens are equal.

``--budget`` is in minutes: what would likely end later is left out, which is printed. With ``--folder`` what was done is kept
there, and not done again. Prints tables and sentences; writes docs/local_updates.json and draws docs/local_updates.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from co2_picture import draw
from co2_plan import Findings, Rows, compare
from co2_report import classifier_table, plm_table, sentences
from compare_optimizers import finite
from strategy_trainings import Result, Trainer

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Train, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=90, help="minutes")
    parser.add_argument("--at-once", type=int, default=2, help="trainings at a time, of one thread each (default 2)")
    parser.add_argument("--folder", type=Path, help="where trainings are kept, and found again; left out: a temporary one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(folder, time.time() + 60 * options.budget, options.at_once)
        found = compare(trainer)
        trainer.close()
        write(found, trainer.left_out)


def write(found: Findings, left_out: Iterable[str]) -> None:
    """Tables and sentences, the JSON and the picture."""
    said = [*sentences(found), *(f"Left out for lack of time: {name}." for name in dict.fromkeys(left_out))]
    print("\n" + "\n\n".join([classifier_table(found), plm_table(found)]) + "\n")
    print(*said, sep="\n")
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__, "threads": 1},
        "sentences": said,
        "inner_learning_rates": list(map(summary, found.rates)),
        **{name: summaries(getattr(found, name)) for name in ("grids", "classifier", "plm")},
    }
    (DOCS / "local_updates.json").write_text(json.dumps(finite(report), indent=1) + "\n")
    draw(found, DOCS / "local_updates.png")
    print("written: docs/local_updates.json, docs/local_updates.png")


def summaries(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Of all results, by title."""
    return {title: list(map(summary, results)) for title, results in rows.items()}


def summary(result: Result) -> dict[str, Any]:
    """A training, and what it came to."""
    training = result.training
    return {
        "strategy": training.method.strategy,
        "settings": training.method.settings,
        "period": training.period,
        "inner_lr": training.lr,
        "seed": training.seed,
        "steps": training.steps,
        "loss": result.loss,
        "wire_bytes": result.wire_bytes,
        "seconds": result.seconds,
        "curve": result.curve,
    }


if __name__ == "__main__":
    main()
