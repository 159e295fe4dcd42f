"""One merge at the end: does it bring back what workers that hardly ever talked have lost?

"On the Surprising Effectiveness of a Single Global Merging in Decentralized Learning" (arXiv 2507.06542) says that workers with
very different data, which mix their parameters with a random peer's now and then, end with poor models of their own, whose mean
is almost as good as what a server would have; that messages late in training are worth more than early ones; and that workers
that never talk cannot be merged. Here:

- digits, a perceptron of two layers of 64, 32 workers, each with a mixture of classes of its own (Dirichlet, 0.1 for each of ten
  classes; single_merge_data.py), 20 local steps of 16 samples a round, 100 rounds;
- the quickstart's PLM on text whose files are dealt out by package to 16 workers, who begin from one model that one worker
  has trained for 300 steps on all of it: 10 local steps of a sequence of 64 bytes a round, 40 rounds of SGD;
- the same from the beginning, 2 local steps a round, 50 rounds, with the quickstart's Muon: few steps, for its sixteen
  instances cost more than the model.

    python simulations/single_merge.py [--budget MINUTES] [--folder DIR] [--jobs N]

writes docs/single_merge.json and docs/single_merge.png, and prints the tables. What the folder has already is kept, and what the
JSON has of a study that is not asked for (``--studies``), too.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from feedback_trainings import Task
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from strategy_trainings import Method, Result, Trainer, Training

SEEDS = (0, 1, 2)
DIGITS = Task(
    "merged-digits",
    "digits.yaml",
    32,
    "vmap",
    ("model.hidden=[64,64]", "optimizer.momentum=0", "optimizer.weight_decay=0", "training.batch_size=512",
     "training.clip_norm=null", "imports=[single_merge_data]", "partition.name=class_mixture", "training.validate_every=0",
     "recording.log_every=200"),
)  # fmt: skip
PLM_TEXT = ("training.batch_size=16", "data.sequence_length=64", "training.validation_batches=64", "training.validate_every=0",
            "recording.log_every=20")  # fmt: skip
PLM = Task(
    "merged-plm-begun-sgd",
    "quickstart.yaml",
    16,
    "loop",
    (*PLM_TEXT, "partition.name=source", "optimizer.name=sgd", "optimizer.momentum=0", "schedule.name=constant"),
)
PLM_ANEW = Task("merged-plm", "quickstart.yaml", 16, "loop", (*PLM_TEXT, "partition.name=source", "optimizer.adamw_lr=4e-3"))
BEGINNING = Training(Task("merged-plm-beginning", "quickstart.yaml", 1, "loop", PLM_TEXT), Method("local"), 1, 8e-3, 0, 300)
"""What :data:`PLM` begins from, by seed."""


@dataclass(frozen=True)
class Study:
    """A task, its rounds, and how often pairs talk where they talk seldom."""

    task: Task
    lr: float
    steps: int
    period: int
    probability: float
    window_rounds: int
    """Of the dense window."""
    beginning: Training | None = None
    """Whose result all workers begin from; None: from new weights."""

    @property
    def rounds(self) -> int:
        """In a run."""
        return self.steps // self.period


STUDIES = {
    "digits": Study(DIGITS, 0.05, 2000, 20, 0.2, 5),
    "plm": Study(PLM, 0.3, 400, 10, 0.1, 4, BEGINNING),
    "plm from scratch": Study(PLM_ANEW, 8e-3, 100, 2, 0.1, 3),
}


def methods(study: Study) -> dict[str, Method]:
    """By row of the table."""
    matching = ("topology.name=random_matching",)
    sometimes = ("communication.name=sometimes", f"communication.probability={study.probability}")

    def window(share: float) -> Method:
        start = round(share * study.rounds) * study.period
        inside = (f"communication.start={start}", f"communication.stop={start + study.window_rounds * study.period}")
        return Method("dpsgd", (*matching, "communication.name=window", "communication.everybody=true", *inside,
                                f"communication.outside={study.probability}"))  # fmt: skip

    return {
        "no communication": Method("local"),
        "now and then": Method("dpsgd", (*matching, *sometimes)),
        "every round": Method("dpsgd", matching),
        "window at 10%": window(0.1),
        "window at 50%": window(0.5),
        "window at 90%": window(0.9),
        "server": Method("local_sgd"),
    }


CLAIMED = ("now and then", "server", "window at 10%", "window at 90%")


def messages(study: Study, title: str, result: Result) -> int:
    """Models sent by all workers, the merge at the end included: to a server and back, two for each worker."""
    merge = 2 * study.task.workers
    if title == "no communication":
        return merge
    return study.rounds * merge if title == "server" else int(result.summary["sent_by_all"]) + merge


def numbers(study: Study, title: str, results: list[Result]) -> dict[str, Any]:
    """A row: local models, merged model and their distance, over the seeds."""
    measure = "accuracy" if study.task is DIGITS else "loss"
    merged = [each.summary[f"mean_model_{measure}"] for each in results]
    return {
        "local": mean(each.summary[f"worker_validation_{measure}_mean"] for each in results),
        "merged": mean(merged),
        "merged_by_seed": merged,
        "spread": stdev(merged) if len(merged) > 1 else None,
        "consensus_distance": mean(each.summary["consensus_distance"] for each in results),
        "messages": mean(messages(study, title, each) for each in results),
        "seeds": [each.training.seed for each in results],
    }


def tasks(study: Study, trainer: Trainer) -> dict[int, Task]:
    """By seed, each with its own weights to begin from, which are trained first; a seed without them is left out."""
    if study.beginning is None:
        return dict.fromkeys(SEEDS, study.task)
    begun = trainer([replace(study.beginning, seed=seed) for seed in SEEDS])
    weights = {each.training.seed: (trainer.folder / each.training.name / "run").absolute() for each in begun}
    return {
        seed: replace(study.task, settings=(*study.task.settings, f"training.initial_weights={folder}"))
        for seed, folder in weights.items()
    }


def run(study: Study, trainer: Trainer) -> dict[str, dict[str, Any]]:
    """All rows for which there was time; those of the claims come first."""
    rows, by_seed = methods(study), tasks(study, trainer)
    plan = [
        (title, Training(by_seed[seed], rows[title], study.period, study.lr, seed, study.steps))
        for titles in (CLAIMED, rows.keys() - set(CLAIMED))
        for seed in by_seed
        for title in sorted(titles)
    ]
    made = {result.training: result for result in trainer([training for _, training in plan])}
    by_title: dict[str, list[Result]] = {}
    for title, training in plan:
        if training in made:
            by_title.setdefault(title, []).append(made[training])
    return {title: numbers(study, title, by_title[title]) for title in rows if title in by_title}


def sentences(tables: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """What the tables say, claim by claim."""
    said, digits = [], tables.get("digits", {})
    if {"no communication", "now and then", "server"} <= digits.keys():
        seldom, never, server = (digits[title] for title in ("now and then", "no communication", "server"))
        said.append(
            f"digits: merged, the models that talked now and then have {seldom['merged']:.1%}, "
            f"{seldom['merged'] - seldom['local']:.1%} more than each by itself; those that never talked {never['merged']:.1%}; "
            f"a server has {server['merged']:.1%}."
        )
    for name, table in tables.items():
        if {"now and then", "server"} <= table.keys():
            seldom, server = table["now and then"], table["server"]
            closed = (seldom["local"] - seldom["merged"]) / (seldom["local"] - server["merged"])
            said.append(
                f"{name}: one merge closes {closed:.0%} of the gap between the local models ({seldom['local']:.3f}) and the "
                f"server's ({server['merged']:.3f}), with {seldom['messages'] / server['messages']:.1%} of its messages."
            )
        if {"window at 10%", "window at 90%"} <= table.keys():
            early, late = table["window at 10%"], table["window at 90%"]
            better = 1.0 if name == "digits" else -1.0
            gains = [better * (b - a) for a, b in zip(early["merged_by_seed"], late["merged_by_seed"], strict=False)]
            said.append(
                f"{name}: a dense window late ({late['merged']:.3f}) beats an early one ({early['merged']:.3f}) in "
                f"{sum(gain > 0 for gain in gains)} of {len(gains)} seeds, by {min(gains):.4f} to {max(gains):.4f}."
            )
    return said


def show(console: Console, name: str, study: Study, rows: dict[str, dict[str, Any]]) -> None:
    """The table of a study."""
    measure = "accuracy" if study.task is DIGITS else "loss"
    table = Table(
        title=f"{name}: {study.task.workers} workers, {study.rounds} rounds of {study.period} steps; validation {measure}"
    )
    for column in ("", "local", "merged", "±", "consensus distance", "models sent", "seeds"):
        table.add_column(column, justify="left" if not column else "right")
    for title, row in rows.items():
        spread = "" if row["spread"] is None else f"{row['spread']:.3f}"
        table.add_row(title, f"{row['local']:.3f}", f"{row['merged']:.3f}", spread, f"{row['consensus_distance']:.3g}",
                      f"{row['messages']:,.0f}", str(len(row["seeds"])))  # fmt: skip
    console.print(table)


def draw(path: Path, tables: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Each row's local models and their merge."""
    figure = Figure(figsize=(6.5 * len(tables), 3.6), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        places = range(len(rows), 0, -1)
        local, merged = ([row[which] for row in rows.values()] for which in ("local", "merged"))
        axes.hlines(places, local, merged, color="0.8")
        axes.plot(local, places, "x", label="each worker's own, mean")
        axes.plot(merged, places, "o", label="merged")
        axes.set_yticks(places, [f"{title} ({row['messages']:,.0f} models sent)" for title, row in rows.items()])
        axes.set(title=name, xlabel="validation accuracy" if name == "digits" else "validation loss (nats per byte)")
        axes.grid(alpha=0.3, axis="x")
        axes.legend(loc="lower left" if name == "digits" else "lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--budget", type=float, default=90.0, help="minutes")
    parser.add_argument("--folder", type=Path, default=Path("runs/single_merge"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--studies", nargs="*", choices=STUDIES, default=list(STUDIES))
    options = parser.parse_args()
    trainer = Trainer(options.folder, time.time() + 60 * options.budget, options.jobs)
    results = Path(__file__).parents[1] / "docs" / "single_merge.json"
    before = json.loads(results.read_text())["tables"] if results.exists() else {}
    tables = before | {name: run(STUDIES[name], trainer) for name in options.studies}
    trainer.close()
    console = Console()
    for name, rows in tables.items():
        show(console, name, STUDIES[name], rows)
    said = sentences(tables)
    for line in said:
        console.print(line)
    for name in trainer.left_out:
        console.print(f"no time for {name}")
    results.write_text(json.dumps({"tables": tables, "said": said, "left_out": trainer.left_out}, indent=1))
    draw(results.with_suffix(".png"), tables)


if __name__ == "__main__":
    main()
