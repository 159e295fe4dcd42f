"""The pictures that stay in a run's folder: its report, and the loss alone for whoever only looks at pictures."""

from __future__ import annotations

from pathlib import Path

from disttrain.recording.folder import RunFolder
from disttrain.recording.report import RunRecord, read_run, write_report
from disttrain.recording.report.curves import Axis, axes_of, draw_curves, leave_out_the_start, legend

NOT_OF_A_SINGLE_RUN = ("tokens", "seconds", "virtual_seconds")
"""Axes that look like the first one's where the run goes at one speed."""


def draw_pictures(folder: RunFolder) -> None:
    """Write ``report.html`` and ``loss.png``; nothing is drawn of a run without records."""
    if not folder.metrics.exists() or not folder.metrics.stat().st_size:
        return
    run = read_run(folder.path)
    plot_loss([run], folder.loss_plot)
    write_report([run], folder.report)


def plot_loss(runs: list[RunRecord], picture: Path, axes: list[Axis] | None = None) -> None:
    """Draw the loss and the validation loss of some runs, against steps and bytes unless ``axes`` says otherwise, into a PNG."""
    from matplotlib.figure import Figure  # slow to import, and needed once, at the very end

    axes = axes or [axis for axis in axes_of(runs) if axis.key not in NOT_OF_A_SINGLE_RUN]
    figure = Figure(figsize=(5 * len(axes), 4), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        draw_curves(panel, runs, "validation_loss", axis, training="loss")
        panel.grid(alpha=0.3)
    leave_out_the_start(panels[0], runs)
    panels[0].set_ylabel(runs[0].loss_label)
    legend(panels[0])
    figure.savefig(picture, dpi=120)
