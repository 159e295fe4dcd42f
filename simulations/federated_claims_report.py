"""Lines, sentences and picture of federated_claims.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from federated_claims_runs import Result, Run
from matplotlib.figure import Figure

SPENT = ("rounds", "megabytes_up", "gradients")


def typical(results: Sequence[Result], what: str) -> float:
    """The median over seeds of something in ``SPENT``; infinite if most never arrive."""
    values = [getattr(result, what) for result in results]
    return float(statistics.median(math.inf if value is None else value for value in values))


def ending(results: Sequence[Result]) -> float:
    """The score at the end, mean over seeds."""
    return statistics.mean(result.end for result in results)


def line(results: Sequence[Result]) -> str:
    """A row of the table."""
    first = results[0]
    spread = statistics.stdev(result.end for result in results) if len(results) > 1 else 0.0
    rounds = "/".join("never" if each.rounds is None else str(each.rounds) for each in results)
    megabytes, gradients = typical(results, "megabytes_up"), typical(results, "gradients")
    return (
        f"{first.name:<22} {first.goal:<5} lr {first.lr:<5g} server {first.server_lr:<2g} end {ending(results):<6.4g} "
        f"± {spread:<6.2g} rounds {rounds:<14} MB up {megabytes:<8.3g} gradients {gradients:,.0f}"
    )


def tables(results: Sequence[Result]) -> dict[tuple[str, str], dict[str, list[Result]]]:
    """By regime and goal, then by name."""
    found: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for result in results:
        found.setdefault((result.regime, result.goal), {}).setdefault(result.name, []).append(result)
    return found


def verdicts(results: Sequence[Result]) -> list[str]:
    """What reproduces, in plain sentences."""
    said = []
    for (regime, goal), table in tables(results).items():
        for name, rows in table.items():
            if "%" in name and "scaffold" in table:
                said.append(f"{regime}, {goal}, {name}: {of_compression(goal, rows, table['scaffold'])}")
            if name.startswith("fedamd"):
                said.append(f"{regime}, {goal}, {name}: {of_anchors(goal, rows, table)}")
    return said


def of_compression(goal: str, rows: Sequence[Result], scaffold: Sequence[Result]) -> str:
    """Against scaffold: bytes, and accuracy or rounds."""
    if math.isinf(typical(rows, "rounds")):
        return "never there." if math.isfinite(typical(scaffold, "rounds")) else "never there, as scaffold."
    less = typical(scaffold, "megabytes_up") / typical(rows, "megabytes_up")
    if goal == "end":
        return f"{100 * (ending(rows) - ending(scaffold)):+.1f} points of accuracy against scaffold, {less:.3g} times less sent."
    more = typical(rows, "rounds") / typical(scaffold, "rounds")
    return f"{more:.2g} times scaffold's rounds, {less:.3g} times less sent."


def of_anchors(goal: str, rows: Sequence[Result], table: Mapping[str, Sequence[Result]]) -> str:
    """Against all that has none."""
    peers = [name for name in table if not name.startswith("fedamd") and "%" not in name]
    if goal == "end":
        return ", ".join(f"{100 * (ending(rows) - ending(table[peer])):+.1f} points against {peer}" for peer in peers) + "."
    there = [peer for peer in peers if math.isfinite(typical(table[peer], "rounds"))]
    if math.isinf(typical(rows, "rounds")):
        return f"never there, unlike {', '.join(there) or 'nobody'}."
    ratios = [
        f"{typical(rows, 'rounds') / typical(table[peer], 'rounds'):.2g} and "
        f"{typical(rows, 'gradients') / typical(table[peer], 'gradients'):.2g} of {peer}"
        for peer in there
    ]
    late = [f"{peer} is never there" for peer in peers if peer not in there]
    return "times rounds and gradients: " + "; ".join(ratios + late) + "."


def draw(results: Sequence[Result], curves: Mapping[str, Run], picture: Path) -> None:
    """Bars of the hard regime, and curves of the stationary one."""
    bars = [(regime, goal) for regime, goal in tables(results) if regime == "hard" and goal != "end"]
    rows = len(bars) + bool(curves)
    figure = Figure(figsize=(12, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False)
    for row, key in zip(panels, bars, strict=False):
        draw_bars(row, f"{key[0]}: {{}} to {key[1]} accuracy", tables(results)[key])
    for panel, what in zip(panels[-1] if curves else (), SPENT, strict=False):
        draw_curves(panel, what, curves)
    figure.savefig(picture, dpi=110)


def draw_bars(row: Sequence[Any], title: str, table: Mapping[str, Sequence[Result]]) -> None:
    """Medians; what never arrives has none."""
    for panel, what in zip(row, SPENT, strict=True):
        values = [typical(each, what) for each in table.values()]
        panel.barh(list(table), [0 if math.isinf(value) else value for value in values], log=what == "megabytes_up")
        panel.set_title(title.format(what.replace("_", " ")), fontsize=10)
        panel.grid(alpha=0.3, axis="x")
        panel.invert_yaxis()
        panel.tick_params(axis="y", labelsize=8)


def draw_curves(panel: Any, what: str, curves: Mapping[str, Run]) -> None:
    """‖∇f‖² by what was spent, with learning rates for the last goal."""
    for name, run in curves.items():
        spent = {
            "rounds": [(number + 1) * run.every for number in range(len(run.scores))],
            "megabytes_up": [each / 1e6 for each in run.bytes_up],
            "gradients": run.gradients,
        }[what]
        style = "-" if name.startswith("fedamd") else "--"
        panel.plot(spent, [10**-score for score in run.scores], style, label=name, linewidth=1)
    panel.set(yscale="log", xscale="linear" if what == "rounds" else "log", xlabel=what.replace("_", " "))
    panel.set_ylim(top=0.1)  # above are those whose gradient does not count
    panel.set_title("stationary: ‖∇f‖²", fontsize=10)
    panel.grid(alpha=0.3)
    if what == "rounds":
        panel.legend(fontsize=7)
