"""The report's figures, each an SVG of its own; matplotlib is imported when the first is drawn."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from disttrain.recording.folder import RunFolder
from disttrain.recording.progress import readable_bytes
from disttrain.recording.report.curves import COLOURS, ROUNDS, STEPS, Axis, axes_of, draw_curves, leave_out_the_start
from disttrain.recording.report.reading import RunRecord
from disttrain.recording.report.split import PARTS, split_of
from disttrain.recording.report.timeline import draw_timeline, read_trace, steps_of

INCHES = (4.5, 3.1)
SHOWN_STEPS = 12
"""Of a trace."""
LOOK: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#1c2330",
    "xtick.color": "#1c2330",
    "ytick.color": "#1c2330",
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "svg.fonttype": "none",  # text stays text: sharp, small, found by the browser's search
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
}
MARGINS = {"left": 0.175, "right": 0.975, "bottom": 0.17, "top": 0.955}
LEGEND: Any = {
    "frameon": False,
    "loc": "lower left",
    "bbox_to_anchor": (-0.02, 1.0),
    "fontsize": 9,
    "ncols": 3,
    "handlelength": 1,
}
"""Above the axes."""


@dataclass(frozen=True)
class Figure:
    """One picture of the page."""

    title: str
    svg: str
    note: str = ""


def loss_figures(runs: Sequence[RunRecord]) -> list[Figure]:
    """The loss against everything that is spent for it."""
    labels = {run.loss_label for run in runs}
    label = labels.pop() if len(labels) == 1 else "loss (nats)"

    def draw(axis: Axis, axes: Any) -> None:
        draw_curves(axes, runs, "validation_loss", axis, training="loss")
        leave_out_the_start(axes, runs)
        axes.set_ylabel(label)

    known = [axis for axis in axes_of(runs) if any("loss" in record for run in runs for record in run.records)]
    return [Figure(axis.title, to_svg(partial(draw, axis))) for axis in known]


def metric_figures(runs: Sequence[RunRecord], keys: Sequence[str], labels: dict[str, str]) -> list[Figure]:
    """One for each of the records' keys, against steps."""

    axis = ROUNDS if all(run.federated for run in runs) else STEPS

    def draw(key: str, axes: Any) -> None:
        draw_curves(axes, [run if any(key in record for record in run.records) else _without(run) for run in runs], key, axis)
        label, scale = _unit(key)
        axes.set_ylabel(labels.get(key, label), parse_math=False)
        if scale != 1:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value * scale:g}")

    return [Figure(_title(key), to_svg(partial(draw, key))) for key in keys]


def _unit(key: str) -> tuple[str, float]:
    """A label for what is recorded under a key, and what to multiply it by; a key's last word may be its unit."""
    words, _, last = key.replace("_", " ").rpartition(" ")
    unit, scale = {"bytes": ("MB", 1e-6), "seconds": ("s", 1.0), "ratio": ("share", 1.0)}.get(last, ("", 1.0))
    return (f"{words} ({unit})", scale) if unit and words else (key.replace("_", " "), 1.0)


def _title(key: str) -> str:
    words = key.replace("_", " ")
    return words[:1].upper() + words[1:]


def _without(run: RunRecord) -> RunRecord:
    """The same name and colour, and nothing to draw."""
    return RunRecord(run.name, run.path, [])


def bytes_figure(runs: Sequence[RunRecord]) -> Figure | None:
    """What each run's worker has sent."""
    sent = [run.number("wire_bytes") for run in runs]
    known = [each for each in sent if each is not None]
    if not known:
        return None

    def draw(axes: Any) -> None:
        rows = list(range(len(runs)))
        axes.barh(rows, [(each or 0) / 1e6 for each in sent], color=[COLOURS[row % len(COLOURS)] for row in rows], height=0.6)
        for row, each in zip(rows, sent, strict=True):
            label = "unknown" if each is None else readable_bytes(each)
            axes.annotate(label, ((each or 0) / 1e6, row), (5, 0), textcoords="offset points", va="center")
        _name_rows(axes, runs)
        axes.set_xlim(0, max(*known, 1.0) / 1e6 * 1.28)
        axes.set_xlabel("sent per worker (MB)")

    return Figure("Bytes sent", to_svg(draw, _height(runs)))


def split_figure(runs: Sequence[RunRecord]) -> Figure | None:
    """Where a step's time goes."""
    splits = [split_of(run) for run in runs]
    if not any(splits):
        return None

    def draw(axes: Any) -> None:
        left = [0.0] * len(runs)
        for part in PARTS:
            widths = [0.0 if split is None else split[part.name] * 1e3 for split in splits]
            axes.barh(range(len(runs)), widths, left=left, color=part.colour, label=part.name, height=0.6)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        _name_rows(axes, runs)
        axes.set_xlabel("time per step (ms)")
        axes.legend(**LEGEND)

    note = "Exposed: the worker waits for the network and computes nothing. Validation and checkpoints are not in it."
    if missing := [run.name for run, split in zip(runs, splits, strict=True) if split is None]:
        note += f" Not known of {', '.join(missing)}."
    return Figure("A step’s time", to_svg(draw, _height(runs)), note)


def timeline_figures(runs: Sequence[RunRecord]) -> list[Figure]:
    """Some steps of two ranks, of each run that was traced."""
    found = []
    for run in runs:
        try:
            bars = read_trace(RunFolder(run.path).trace)
        except ValueError:  # none, or none of ours
            continue
        if not any(bar.row == "step" for bar in bars):
            continue
        ranks, window = sorted({bar.rank for bar in bars})[:2], steps_of(bars, 0, SHOWN_STEPS - 1)
        rows = len({(bar.rank, bar.row) for bar in bars if bar.rank in ranks})
        svg = to_svg(partial(draw_timeline, bars=bars, window=window, ranks=ranks), (9, 0.7 + 0.26 * rows))
        found.append(Figure(run.name, svg, "The first traced steps; all of them: open trace.json on ui.perfetto.dev."))
    return found


def _name_rows(axes: Any, runs: Sequence[RunRecord]) -> None:
    axes.set_yticks(range(len(runs)), [_short(run.name) for run in runs], parse_math=False)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}"


def _height(runs: Sequence[RunRecord]) -> tuple[float, float]:
    return INCHES[0], max(1.6, 0.8 + 0.42 * len(runs)) if len(runs) < 7 else 0.8 + 0.3 * len(runs)


def to_svg(draw: Callable[[Any], None], inches: tuple[float, float] | None = None) -> str:
    """What ``draw`` draws into the axes it is given, as an ``<svg>`` element that scales to its container's width.

    Without a size of its own, a figure has the margins of a curve: to fit them to the labels takes more time than to draw it.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context(LOOK | {"svg.hashsalt": "disttrain"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that a font lacks, which the browser has
        canvas = Canvas(figsize=inches or INCHES, layout="constrained" if inches else None)
        draw(canvas.subplots())
        if inches is None:
            canvas.subplots_adjust(**MARGINS)
        file = io.StringIO()
        canvas.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _embedded(file.getvalue())


def _embedded(document: str) -> str:
    """The document's ``<svg>`` element alone, without a size of its own but with its proportions."""
    element = document[document.index("<svg") :]
    opening, rest = element.split(">", 1)
    opening = re.sub(r'\s(width|height)="[^"]*"', "", opening)
    return f'{opening} role="img">{rest}'
