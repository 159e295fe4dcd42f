"""The page itself: figures and tables put into ``page.html``, which escapes every text that comes from a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from disttrain.recording.folder import write_atomically
from disttrain.recording.report import figures
from disttrain.recording.report.reading import RunRecord
from disttrain.recording.report.tables import chips, differences, same_task, summary_table

HERE = Path(__file__).parent
IN_OTHER_FIGURES = {
    *("step", "tokens", "loss", "validation_loss", "seconds", "payload_bytes", "wire_bytes", "exposed_seconds"),
    *("optimizer_seconds", "evaluation_seconds", "checkpoint_seconds", "bytes_up", "bytes_down"),
    *("gradient_evaluations", "samples_scored", "virtual_seconds"),
}
OF_EVERY_RUN = ("learning_rate", "gradient_norm", "tokens_per_second", "mfu", "skipped_steps")
"""Those that do not come from the strategy."""
LABELS = {
    "validation_accuracy": "accuracy (share)",
    "gradient_norm": "norm of the gradient",
    "tokens_per_second": "tokens or samples per second",
    "mfu": "MFU (share of peak FLOP/s)",
    "consensus_distance": "consensus distance (root mean square)",
}
MOST_METRICS = 36
"""Figures of metrics: a script may record anything, and a page must be read."""


def write_report(runs: Sequence[RunRecord], path: Path) -> None:
    """Write the page."""
    write_atomically(path, render(runs).encode("utf-8", "replace").decode("utf-8"))  # names of files may be no text


def render(runs: Sequence[RunRecord]) -> str:
    """The page about some runs, as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(**_contents(runs))


def _contents(runs: Sequence[RunRecord]) -> dict[str, Any]:
    rows, headlines = summary_table(runs)
    return {
        "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "chips": chips(runs),
        "unfinished": [(run.name, run.text("status", "not finished")) for run in runs if run.text("status") != "finished"],
        "emulated": [run.name for run in runs if run.text("compute") == "emulated"],
        "comparable": same_task(runs),
        "headlines": headlines,
        "rows": list(zip(chips(runs), rows, strict=True)),
        "sections": [(title, each) for title, each in _sections(runs) if each],
        "left_out": _metrics(runs)[MOST_METRICS:],
        "differences": differences(runs) if len(runs) > 1 else [],
        "configs": [(run.name, run.config) for run in runs],
    }


def _sections(runs: Sequence[RunRecord]) -> Iterable[tuple[str, list[figures.Figure]]]:
    yield "Loss", figures.loss_figures(runs)
    yield "Time and bytes", [each for each in (figures.split_figure(runs), figures.bytes_figure(runs)) if each is not None]
    yield "Timeline", figures.timeline_figures(runs)
    keys = _metrics(runs)[:MOST_METRICS]
    validation = [key for key in keys if key.startswith(("validation_", "mean_model_"))]
    common = [key for key in keys if key in OF_EVERY_RUN]
    yield "Validation", figures.metric_figures(runs, validation, LABELS)
    own = [key for key in keys if key not in validation and key not in common]
    yield "Of the rounds" if all(run.federated for run in runs) else "Of the strategy", figures.metric_figures(runs, own, LABELS)
    yield "Of the optimizer", figures.metric_figures(runs, common, LABELS)


def _metrics(runs: Sequence[RunRecord]) -> list[str]:
    """Keys worth a figure: of records, not drawn elsewhere, that change in the course of some run."""
    keys = dict.fromkeys(key for run in runs for record in run.records for key in record if key not in IN_OTHER_FIGURES)
    return [key for key in keys if any(len({record[key] for record in run.records if key in record}) > 1 for run in runs)]
