"""AdamW, Muon, SOAP and COSMOS, each at its tuned learning rate: loss at equal tokens, optimizer memory, seconds of a step.

    python simulations/compare_optimizers.py [--budget 90] [--steps 360] [--folder FOLDER]

Trains the quickstart's PLM in two widths, one worker of one thread a run, two runs at a time:

1. On the smaller width and seed 0, AdamW at four learning rates a factor of 2 apart; while the best is at the edge of those
   tried, the next one beyond. The others likewise. What they leave to AdamW (embedding and norms) has the learning rate that
   was best for AdamW, so that none has a knob more to tune.
2. The larger width at that learning rate and at half of it; while the least is best, at half of that.
3. Both widths at their best learning rate, three seeds each; seed 0 is of 1 and 2.

All have the same data in the same order, initial weights, schedule and clipping, no weight decay (as in the COSMOS paper's
experiments), and their own defaults for the rest, but for COSMOS's rank: an eighth of the width, since the default of 64 would
span these matrices. ``--budget`` is in minutes: short runs before the first say how many steps will fit, and if time runs short
after all, seeds are left out, which is printed. With ``--folder`` runs are kept, and those already made are not made again.

Prints a table and what it says about the claims of the COSMOS paper (arXiv 2502.17410); writes docs/optimizers.json and draws
docs/optimizers.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from optimizer_memory import memory_figures
from optimizer_runs import AT_ONCE, GRIDS, LOG_EVERY, PROBE_STEPS, VALIDATION_BATCHES, VALIDATIONS, WIDTHS, Result, Run, train_all

from disttrain.recording.metrics import finite_or_none

DOCS = Path(__file__).parents[1] / "docs"
SEEDS = (0, 1, 2)

Grid = dict[str, list[Result]]
"""By optimizer, the results of its learning rates."""

TITLES = {"adamw": "AdamW", "muon": "Muon", "soap": "SOAP", "cosmos": "COSMOS"}


def main() -> None:
    """Train, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=90, help="minutes")
    parser.add_argument("--steps", type=int, help="of each run; left out: as many as the budget allows")
    parser.add_argument("--folder", type=Path, help="where runs are kept, and found again; left out: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        compare(folder, time.monotonic() + 60 * options.budget, options.steps)


def compare(folder: Path, deadline: float, steps: int | None) -> None:
    """Everything."""
    steps = steps or planned_steps(folder, deadline)
    print(f"{steps} steps a run", flush=True)
    grids = tune(folder, steps)
    finals, left_out = train_seeds(folder, grids, deadline)
    memory = memory_figures()
    rows = [table_row(name, [result for result in finals if result.run.optimizer == name], memory) for name in GRIDS]
    sentences = [*conclusions(finals, memory), *limits(finals), *left_out, *timing_note(finals)]
    print(f"\n{markdown(rows)}\n")
    print(*sentences, sep="\n")
    report = {
        "machine": machine(finals),
        "steps": steps,
        "table": rows,
        "conclusions": sentences,
        "memory": memory,
        "grids": {width: {name: list(map(asdict, results)) for name, results in grid.items()} for width, grid in grids.items()},
        "finals": [asdict(result) for result in finals],
    }
    (DOCS / "optimizers.json").write_text(json.dumps(finite(report), indent=1) + "\n")
    draw(grids, finals, DOCS / "optimizers.png")
    print("written: docs/optimizers.json, docs/optimizers.png")


# --- training ----------------------------------------------------------------------------------------------------------------


def planned_steps(folder: Path, deadline: float) -> int:
    """How many steps a run can have, from short runs of every kind; as it was planned before, if runs are found."""
    plan = folder / "plan.json"
    if plan.exists():
        return int(json.loads(plan.read_text())["steps"])
    kinds = [Run(name, width, grid[1], GRIDS["adamw"][1], 0, PROBE_STEPS) for name, grid in GRIDS.items() for width in WIDTHS]
    start = time.monotonic()
    probes = train_all(kinds, folder)
    training = sum(PROBE_STEPS * probe.step_seconds for probe in probes)
    overhead = max(0.0, AT_ONCE * (time.monotonic() - start) - training)
    for probe in probes:
        print(f"{probe.run.optimizer:<7} width {probe.run.width:>3}: {probe.step_seconds:.3f} s a step, "
              f"{probe.optimizer_seconds:.3f} of them the optimizer's", flush=True)  # fmt: skip
    seconds = AT_ONCE * 0.9 * (deadline - time.monotonic())
    tuning = len(GRIDS["adamw"]) + 1  # one beyond an edge
    times = {WIDTHS[0]: tuning + len(SEEDS) - 1, WIDTHS[1]: 2 + len(SEEDS)}
    seconds -= overhead / len(probes) * len(GRIDS) * sum(times.values())
    seconds_per_step = sum(times[probe.run.width] * probe.step_seconds for probe in probes)
    steps = rounded_steps(seconds / seconds_per_step)
    plan.write_text(json.dumps({"steps": steps, "probes": [asdict(probe) for probe in probes]}))
    return steps


def rounded_steps(affordable: float) -> int:
    """Steps of training among ``affordable`` ones: validation costs a third of a step a batch, and divides the run evenly."""
    unit = VALIDATIONS * LOG_EVERY
    return max(unit, int(affordable - VALIDATIONS * VALIDATION_BATCHES / 3) // unit * unit)


def tune(folder: Path, steps: int) -> dict[int, Grid]:
    """Every optimizer's grid on both widths: AdamW's on the smaller first, whose best is what the others leave to AdamW."""
    small, large = WIDTHS
    grid = search({"adamw": GRIDS["adamw"]}, lambda name, lr: Run(name, small, lr, lr, 0, steps), folder)
    adamw_lr = best_of(grid["adamw"]).run.lr
    others = {name: lrs for name, lrs in GRIDS.items() if name != "adamw"}
    grid |= search(others, lambda name, lr: Run(name, small, lr, adamw_lr, 0, steps), folder)
    around = {name: (lr, lr / 2) for name, results in grid.items() for lr in [best_of(results).run.lr]}

    def wide(name: str, lr: float) -> Run:
        return Run(name, large, lr, lr if name == "adamw" else adamw_lr, 0, steps)

    return {small: grid, large: search(around, wide, folder, upwards=False)}


def search(grids: dict[str, tuple[float, ...]], make: Callable[[str, float], Run], folder: Path, upwards: bool = True) -> Grid:
    """All learning rates of the grids, and those beyond an edge while the best is there."""
    found: Grid = {name: [] for name in grids}
    wanted = [(name, lr) for name, grid in grids.items() for lr in grid]
    while wanted:
        for result in train_all([make(name, lr) for name, lr in wanted], folder):
            found[result.run.optimizer].append(result)
        losses = {name: {result.run.lr: result.validation_loss for result in results} for name, results in found.items()}
        wanted = [(name, lr) for name, each in losses.items() if (lr := beyond_edge(each, upwards)) is not None]
    return {name: sorted(results, key=lambda result: result.run.lr) for name, results in found.items()}


def best_of(results: list[Result]) -> Result:
    """The one of least loss."""
    return min(results, key=lambda result: result.validation_loss)


def beyond_edge(losses: dict[float, float], upwards: bool = True) -> float | None:
    """The next learning rate to try, a factor of 2 beyond the best where that is at an edge; None: the best has neighbours.

    Args:
        losses: by learning rate; infinite where training diverged.
        upwards: whether the upper edge counts: a wider model wants no higher learning rate.

    Raises:
        RuntimeError: if all diverged, so that there is no direction to go.
    """
    best = min(losses, key=lambda lr: losses[lr])
    if not math.isfinite(losses[best]):
        raise RuntimeError(f"training diverged at every learning rate of {sorted(losses)}")
    if best == min(losses):
        return best / 2
    return 2 * best if upwards and best == max(losses) else None


def train_seeds(folder: Path, grids: dict[int, Grid], deadline: float) -> tuple[list[Result], list[str]]:
    """Seed 0 of both widths from their grids and the others at the same learning rates; and what the budget left out of these.

    A seed of a width is made by all optimizers or by none.
    """
    finals, left_out = [best_of(results) for grid in grids.values() for results in grid.values()], []
    for seed in SEEDS[1:]:
        for width in WIDTHS:
            first = [result for result in finals if result.run.width == width and result.run.seed == SEEDS[0]]
            runs = [replace(result.run, seed=seed) for result in first]
            to_make = [
                result for result, run in zip(first, runs, strict=True) if not (folder / run.name / "summary.json").exists()
            ]
            likely = 1.1 * sum(result.run.steps * result.step_seconds for result in to_make) / AT_ONCE
            if to_make and time.monotonic() + likely > deadline:
                left_out.append(f"Left out for lack of time: seed {seed} of width {width}.")
                continue
            finals += train_all(runs, folder)
    return finals, left_out


# --- what came of it ---------------------------------------------------------------------------------------------------------


def table_row(name: str, finals: list[Result], memory: dict[str, Any]) -> dict[str, Any]:
    """One optimizer's figures, by width; times are means over seeds."""
    row: dict[str, Any] = {"optimizer": name, "widths": {}}
    for width in WIDTHS:
        results = [result for result in finals if result.run.width == width]
        losses = [result.validation_loss for result in results]
        state, soap = (memory["models_bytes"][str(width)][each] for each in (name, "soap"))
        row["widths"][str(width)] = {
            "lr": results[0].run.lr,
            "adamw_lr": results[0].run.adamw_lr,
            "validation_loss": statistics.mean(losses),
            "deviation": statistics.stdev(losses) if len(losses) > 1 else None,
            "seeds": len(losses),
            "tokens": results[0].tokens,
            "state_bytes": state,
            "state_ratio_to_soap": state / soap,
            "optimizer_seconds": statistics.mean(result.optimizer_seconds for result in results),
            "step_seconds": statistics.mean(result.step_seconds for result in results),
        }
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    heads = ["optimizer", "lr", "width", "validation loss", "tokens", "matrix state", "of SOAP's", "optimizer step", "whole step"]
    lines = [heads, ["---"] * len(heads)]
    for width in map(str, WIDTHS):
        for row in rows:
            cell = row["widths"][width]
            spread = "" if cell["deviation"] is None else f" ± {cell['deviation']:.4f}"
            lines.append([
                *(TITLES[row["optimizer"]], f"{cell['lr']:g}", width, f"{cell['validation_loss']:.4f}{spread}"),
                *(f"{cell['tokens'] / 1e6:.2f} M", f"{cell['state_bytes'] / 1e6:.2f} MB", f"{cell['state_ratio_to_soap']:.0%}"),
                *(f"{cell['optimizer_seconds'] * 1e3:.1f} ms", f"{cell['step_seconds'] * 1e3:.0f} ms"),
            ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def conclusions(finals: list[Result], memory: dict[str, Any]) -> list[str]:
    """Whether what the paper says was so here, in sentences."""
    sentences = []
    for width in WIDTHS:
        losses = {
            name: {r.run.seed: r.validation_loss for r in finals if (r.run.optimizer, r.run.width) == (name, width)}
            for name in GRIDS
        }
        for other in ("muon", "soap", "adamw"):
            sentences.append(f"Width {width}: {verdict(losses['cosmos'], losses[other], TITLES[other])}")
    return [*sentences, *memory_sentences(memory["block_2048_bytes"], memory["block_2048_numbers_per_d2"])]


def memory_sentences(stored: dict[str, int], counted: dict[str, float]) -> list[str]:
    """On the claim that COSMOS keeps about 19 % of what SOAP does."""
    mib = {name: f"{number / 2**20:,.0f} MiB" for name, number in stored.items()}
    return [
        f"A transformer's block of width d = 2048: COSMOS of rank 64 keeps {mib['cosmos']} ({counted['cosmos']:.2f} d² numbers), "
        f"SOAP {mib['soap']} ({counted['soap']:.0f} d²) as its public code and ours store it: "
        f"{stored['cosmos'] / stored['soap']:.1%} of it.",
        f"If SOAP is counted with one square matrix a side, as the paper seems to, it has {counted['soap_as_paper']:.0f} d², and "
        f"COSMOS {counted['cosmos'] / counted['soap_as_paper']:.1%} of it: the 19 % that are said of it.",
    ]


def verdict(ours: dict[int, float], theirs: dict[int, float], other: str) -> str:
    """Whether COSMOS came as low as another at equal tokens; losses by seed, whose data and initial weights are the same."""
    differences = [ours[seed] - theirs[seed] for seed in ours]
    listed = ", ".join(f"{difference:+.4f}" for difference in differences)
    mean = f"{statistics.mean(differences):+.4f}"
    if all(difference <= 0 for difference in differences):
        judged = f"COSMOS is at or below {other} in every seed"
    elif all(difference > 0 for difference in differences):
        judged = f"COSMOS is above {other} in every seed"
    else:
        judged = f"COSMOS and {other} cannot be told apart, the sign changes with the seed"
    return f"{judged}: {mean} nats a byte on average ({listed})."


def limits(finals: list[Result]) -> list[str]:
    """What the figures do not say."""
    steps = finals[0].run.steps
    sentences = [
        f"These are runs of {steps} steps, of small models, tuned by one seed and under one schedule, the quickstart's: they say "
        "nothing of long runs or large models."
    ]
    for width in WIDTHS:
        for name, title in TITLES.items():
            losses = [result.validation_loss for result in finals if (result.run.optimizer, result.run.width) == (name, width)]
            spread = max(losses) - min(losses)
            if spread > 0.1:
                sentences.append(
                    f"{title}'s seeds differ by {spread:.2f} nats at width {width}: there its learning rate, the best of seed 0, "
                    "is too high to be safe, and its mean is not what it could reach."
                )
    return sentences


def timing_note(finals: list[Result]) -> list[str]:
    """A warning, if the machine had more to do than this."""
    load = statistics.median(result.load for result in finals)
    if load < AT_ONCE + 0.5:
        return []
    return [f"The seconds were measured on a busy machine (its load was {load:.1f}, {AT_ONCE} of it ours): do not rely on them."]


def machine(finals: list[Result]) -> dict[str, Any]:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    facts = {"processor": processor, "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    return facts | {"threads_a_run": 1, "runs_at_once": AT_ONCE, "busy": bool(timing_note(finals))}


def finite(value: Any) -> Any:
    """The same, with None for numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return finite_or_none(value)


def draw(grids: dict[int, Grid], finals: list[Result], picture: Path) -> None:
    """The grids, and loss against tokens of both widths: a line for the mean, a thin one for each seed."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    left, *rights = figure.subplots(1, 1 + len(WIDTHS))
    for number, name in enumerate(GRIDS):
        for axes, (width, grid), style in zip(rights, grids.items(), ("o-", "o--"), strict=True):
            tried = [(r.run.lr, r.validation_loss) for r in grid[name] if math.isfinite(r.validation_loss)]
            left.plot(*zip(*tried, strict=True), style, color=f"C{number}", markersize=4)
            curves = [result.curve for result in finals if (result.run.optimizer, result.run.width) == (name, width)]
            draw_curves(axes, curves, f"C{number}", TITLES[name])
    lrs = sorted({result.run.lr for grid in grids.values() for results in grid.values() for result in results})
    left.set(xscale="log", xlabel="learning rate", ylabel="validation loss (nats per byte)")
    left.set_xticks(lrs, [f"{lr:g}" for lr in lrs], fontsize=8)
    left.set_xticks([], minor=True)
    left.set_title(f"tuning, seed 0 (dashed: width {WIDTHS[-1]})")
    for axes, width in zip(rights, WIDTHS, strict=True):
        axes.set(xlabel="tokens (millions)")
        axes.set_title(f"width {width}, tuned learning rates")
    for axes in (left, *rights):
        axes.grid(alpha=0.3)
    rights[-1].legend()
    figure.savefig(picture, dpi=110)


def draw_curves(axes: Any, curves: list[list[tuple[int, float]]], color: str, label: str) -> None:
    """One optimizer's seeds."""
    tokens = [number / 1e6 for number, _ in curves[0]]
    losses = [[loss for _, loss in curve] for curve in curves]
    for each in losses:
        axes.plot(tokens, each, color=color, linewidth=0.6, alpha=0.5)
    axes.plot(tokens, [statistics.mean(each) for each in zip(*losses, strict=True)], "o-", color=color, markersize=3, label=label)


if __name__ == "__main__":
    main()
