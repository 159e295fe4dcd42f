"""docs/error_feedback.png: what error_feedback.py found, in four panels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feedback_claims import LOGISTIC_TARGET, Floor
from feedback_descent import Descent
from feedback_plm import LRS
from feedback_report import TITLES, by_method, optimizer_of, plm_title
from feedback_trainings import Result
from matplotlib.figure import Figure

COLORS = {
    "dense": "k",
    "no feedback": "C7",
    "EF14": "C0",
    "EF21": "C1",
    "EF21-SGDM": "C2",
    "EControl": "C3",
    "EF14 in two phases": "C9",
}
COLORS[TITLES["dense"]] = COLORS["dense"]
PLM_COLORS = {TITLES["dense"]: "k", "EF14 1%": "C0", "EF14 3%": "C4", "EF14 sign": "C5", "EF14 int8": "C2"}


def draw(
    descents: Sequence[Descent], floors: Sequence[Floor], digits: Sequence[Result], plm: Sequence[Result], picture: Path
) -> None:
    """All panels; one whose experiment was left out stays empty."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    panels = figure.subplots(2, 2)
    draw_logistic(panels[0, 0], descents)
    draw_floors(panels[0, 1], floors)
    draw_digits(panels[1, 0], digits)
    draw_plm(panels[1, 1], plm)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def draw_logistic(axes: Any, descents: Sequence[Descent]) -> None:
    """‖∇f‖² against bits."""
    for each in descents:
        axes.plot([bits / 1000 for bits in each.bits], each.squared_norms, color=COLORS[each.title], label=each.title)
    axes.axhline(LOGISTIC_TARGET, color="k", linewidth=0.5, linestyle=":")
    arrived = [each.bits_to(LOGISTIC_TARGET) for each in descents]
    latest = max((bits for bits in arrived if math.isfinite(bits)), default=descents[0].bits[-1])
    axes.set(xlim=(0, 2 * latest / 1000), yscale="log", xlabel="sent per worker (kbit)", ylabel="‖∇f‖²")
    axes.set_title("logistic regression, 20 workers of one class each, top-1 of 31, tuned steps", fontsize=10)


def draw_floors(axes: Any, floors: Sequence[Floor]) -> None:
    """‖∇f‖² at rest against heterogeneity; dashed with noise."""
    for title, noise in dict.fromkeys((each.title, each.noise) for each in floors):
        own = [each for each in floors if (each.title, each.noise) == (title, noise)]
        label = f"{title}, σ={noise:g}"
        points = [each.heterogeneity for each in own], [each.floor for each in own]
        axes.plot(*points, "o--" if noise else "o-", color=COLORS[title], markersize=4, label=label)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(yscale="log", xlabel="heterogeneity ζ", ylabel="‖∇f‖² at rest (stopped at 1e-20)")
    axes.set_title("quadratic, 10 workers, top-k of a tenth, tuned steps", fontsize=10)


def draw_digits(axes: Any, digits: Sequence[Result]) -> None:
    """Validation loss against bytes, the mean over seeds."""
    for method, results in by_method(digits).items():
        curves = [result.curve for result in results if result.curve]
        points = list(zip(*curves, strict=True))  # of all seeds at one step
        kilobytes = [seeds[0][1] / 1e3 for seeds in points]
        losses = [statistics.mean(loss for _, _, loss in seeds) for seeds in points]
        axes.plot(kilobytes, losses, "o-", color=COLORS[TITLES[method]], markersize=4, label=TITLES[method])
    axes.set(xscale="log", yscale="log", xlabel="sent per worker (kB)", ylabel="validation loss (nats)")
    axes.set_title("digits, 10 workers of a few classes each, block top-k 1 %, tuned rates", fontsize=10)


def draw_plm(axes: Any, plm: Sequence[Result]) -> None:
    """Validation loss against bytes of DDP and EF14 at the optimizer's own rate; dashed with Muon."""
    for result in plm:
        title = plm_title(result)
        if title not in PLM_COLORS or result.training.lr not in LRS.values():
            continue
        points = [each[1] / 1e6 for each in result.curve], [each[2] for each in result.curve]
        optimizer = optimizer_of(result)
        style = "o-" if optimizer == "AdamW" else "o--"
        axes.plot(*points, style, color=PLM_COLORS[title], markersize=4, label=f"{optimizer}, {title}")
    axes.set(xscale="log", xlabel="sent per worker (MB)", ylabel="validation loss (nats per byte)")
    axes.set_title("quickstart PLM, 2 workers, block top-k and others, equal steps", fontsize=10)
