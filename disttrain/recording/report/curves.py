"""Curves of runs over what was spent for them: steps, tokens, seconds, bytes. The report's, ``loss.png``'s and the README's.

matplotlib's axes come from the caller, who has imported it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from disttrain.recording.report.reading import RunRecord

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#000000", "#8C564B")
"""Okabe and Ito's, which colour-blind readers tell apart too; the yellow is darkened for white paper."""
DASHES = ("-", "--", ":", "-.")
"""Beyond as many runs as colours, the colours come again, dashed."""
MOST_POINTS = 250
"""Of a curve: more are not seen, and make the page large."""
WIDE_RATIO = 20.0
"""Between the most and the fewest bytes: from there on, their axis is logarithmic."""
START_SHARE = 0.08
LOSSES = ("loss", "validation_loss")

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """What may be spent."""

    key: str
    """Of a record."""
    label: str
    """With its unit."""
    title: str
    scale: float = 1.0
    wide: bool = False
    """Whether runs may differ by orders of magnitude."""


STEPS = Axis("step", "step", "Against steps")
ROUNDS = Axis("step", "round", "Against rounds")
TOKENS = Axis("tokens", "tokens, all workers (millions)", "Against tokens", 1e-6)
SAMPLES = Axis("tokens", "samples, all workers (thousands)", "Against samples", 1e-3)
SECONDS = Axis("seconds", "time (s)", "Against time")
SENT = Axis("wire_bytes", "sent per worker (MB)", "Against bytes", 1e-6, wide=True)
SENT_BY_CLIENTS = Axis("bytes_up", "sent by all clients (MB)", "Against bytes", 1e-6, wide=True)
GRADIENTS = Axis("gradient_evaluations", "gradients of a sample (thousands)", "Against gradients", 1e-3)
VIRTUAL_SECONDS = Axis("virtual_seconds", "virtual time (s)", "Against virtual time")


def axes_of(runs: Sequence[RunRecord]) -> list[Axis]:
    """Those that mean something for at least one of the runs."""
    counted = SAMPLES if all(run.text("unit") == "sample" for run in runs) else TOKENS
    federated = [GRADIENTS, VIRTUAL_SECONDS, SENT_BY_CLIENTS] if any(run.federated for run in runs) else []
    first = ROUNDS if all(run.federated for run in runs) else STEPS
    candidates = [first, *([] if first is ROUNDS else [counted]), SECONDS, *federated, SENT]
    return [axis for axis in candidates if any(record.get(axis.key) for run in runs for record in run.records)]


def draw_curves(axes: Any, runs: Sequence[RunRecord], key: str, axis: Axis, training: str | None = None) -> None:
    """Draw every run's ``key`` against an axis, and thinly behind it what is named ``training``.

    A run that has the second alone is drawn by it.
    """
    for index, run in enumerate(runs):
        style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}
        measured = every_nth(points(run, axis, key))
        behind = thinned(points(run, axis, training)) if training else []
        label, alpha = (None, 0.35) if measured else (run.name, 1.0)
        if behind:
            axes.plot(*zip(*behind, strict=True), **style, label=label, linewidth=1.2, alpha=alpha)
        if measured:
            size = 3.5 if len(measured) < 40 else 0
            axes.plot(*zip(*measured, strict=True), **style, label=run.name, linewidth=1.7, marker="o", markersize=size)
    axes.set_xlabel(axis.label)
    ends = [end * axis.scale for run in runs if (end := run.number(axis.key)) is not None]
    if axis.wide and _differ_widely(ends):
        axes.set_xscale("log")
        axes.set_xlim(min(ends) / 30, max(ends) * 1.3)
        axes.xaxis.set_major_formatter("{x:g}")


def leave_out_the_start(axes: Any, runs: Sequence[RunRecord]) -> None:
    """Let the loss axis end at what the runs have come to after :data:`START_SHARE` of records: the first fall hides much."""
    losses = [[record[key] for record in run.records for key in LOSSES if key in record] for run in runs]
    tops = [max(own[int(START_SHARE * len(own)) :]) for own in losses if len(own) >= 20]
    if tops and len(tops) == sum(map(bool, losses)):
        low, high = axes.get_ylim()
        axes.set_ylim(low, min(high, max(tops) + 0.05 * (max(tops) - low)))


def points(run: RunRecord, axis: Axis, key: str) -> list[Point]:
    """Of the records that have both."""
    return [(record[axis.key] * axis.scale, record[key]) for record in run.records if key in record and axis.key in record]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many: each is the mean of as many neighbours, at the last one's place; noise shrinks, and a mean stays one."""
    size = -(-len(points) // most)
    if size <= 1:
        return list(points)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def every_nth(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many (and the last) of those there are: of what was measured, nothing is averaged."""
    step = -(-len(points) // most)
    return list(points) if step <= 1 else [*points[:-1:step], points[-1]]


def legend(axes: Any) -> None:
    """Names as they are: a ``$`` in one begins no formula."""
    if axes.get_legend_handles_labels()[0]:
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)


def _differ_widely(ends: Sequence[float]) -> bool:
    return len(ends) > 1 and min(ends) > 0 and max(ends) > WIDE_RATIO * min(ends)
