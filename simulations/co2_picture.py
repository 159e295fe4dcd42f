"""docs/local_updates.png: what co2.py found, in three panels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from co2_plan import CLASSIFIED, CLASSIFIER_STEPS, DDP, PERIODS, PLM_PERIOD, PLM_STEPS, Findings, key
from co2_report import mean
from matplotlib.figure import Figure
from strategy_trainings import Result

Row = tuple[str, Sequence[Result]]


def draw(found: Findings, picture: Path) -> None:
    """The classifier for each period, and the PLM; a dot for each seed."""
    figure = Figure(figsize=(17, 6.5), layout="constrained")
    *lefts, right = figure.subplots(1, len(PERIODS) + 1)
    for axes, period in zip(lefts, PERIODS, strict=True):
        rows = [(entry.title, found.classifier.get(key(entry, period), [])) for entry in CLASSIFIED]
        bars(axes, rows)
        axes.set_title(f"classifier, τ={period}, {CLASSIFIER_STEPS // period} rounds", fontsize=10)
    bars(right, list(found.plm.items()))
    right.set_title(f"quickstart PLM, τ={PLM_PERIOD}, {PLM_STEPS // PLM_PERIOD} rounds", fontsize=10)
    figure.suptitle("Loss at equal tokens, 4 workers: the mean over seeds; a dot for each seed; dashed: DDP")
    figure.savefig(picture, dpi=110)


def bars(axes: Any, rows: Sequence[Row]) -> None:
    """Means as bars from DDP's loss on; what is far worse than the others ends at the edge, with its figure beside it."""
    rows = [(title, results) for title, results in rows if results]
    if not rows or rows[0][0] != DDP.title:
        return
    base = mean(rows[0][1])
    edge = limit([mean(results) - base for _, results in rows])
    for place, (title, results) in enumerate(rows):
        excess = mean(results) - base
        color = "C0" if title.startswith("CO2") else "C7"
        axes.barh(place, min(excess, edge), color=color, alpha=0.6)
        axes.plot([min(result.loss - base, edge) for result in results], [place] * len(results), "k.", markersize=4)
        if excess > edge:
            axes.text(edge, place, f"{excess:+.2f} →", ha="right", va="center", fontsize=8)
    axes.axvline(0, color="k", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [title for title, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="validation loss above DDP's (nats)", xlim=(None, edge))
    axes.grid(alpha=0.3, axis="x")


def limit(excesses: Sequence[float]) -> float:
    """Where the axis ends: at three times the median, or with the worst if that is nearer."""
    ordered = sorted(excesses)
    return 1.05 * min(ordered[-1], max(3 * ordered[len(ordered) // 2], 1e-3))
