"""A picture of the loss against steps, and against the bytes that one worker, or all clients of a federation, sent for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from disttrain.recording.metrics import read_metrics


def plot_loss(metrics: Path, picture: Path, title: str, unit: str | None) -> None:
    """Draw ``loss`` and ``validation_loss`` of a ``metrics.jsonl`` into a PNG; nothing is drawn of an empty file."""
    from matplotlib.figure import Figure  # slow to import, and needed once, at the very end

    records = list(read_metrics(metrics)) if metrics.exists() else []
    if not records:
        return
    panels = [("step", 1.0, "step")]
    if records[-1].get("bytes_up"):
        panels = [
            ("step", 1.0, "round"),
            ("bytes_up", 1e-6, "sent by clients (MB)"),
            ("gradient_evaluations", 1.0, "gradients of a sample"),
        ]
    elif records[-1].get("wire_bytes"):
        panels.append(("wire_bytes", 1e-6, "sent per worker (MB)"))
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (key, scale, label) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        _draw(axes, records, key, scale)
        axes.set(xlabel=label)
    first = figure.axes[0]
    first.set(ylabel=f"loss (nats per {unit})" if unit else "loss")
    if first.lines:
        first.legend()
    figure.suptitle(title)
    figure.savefig(picture, dpi=120)


def _draw(axes: Any, records: list[dict[str, Any]], key: str, scale: float) -> None:
    for name, label, style in (("loss", "training", ".-"), ("validation_loss", "validation", "o-")):
        points = [(record[key] * scale, record[name]) for record in records if record.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
    axes.grid(alpha=0.3)
