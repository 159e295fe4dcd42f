"""A picture of a partition: who has how much of what."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from disttrain.data.base import Dataset
from disttrain.data.partitions.base import Part

MOST_SOURCES = 40
"""Rows that can be told apart; of more sources those with most samples have one each, and the others one together."""


def plot_partition(parts: Sequence[Part], dataset: Dataset, picture: Path | str, owners: str = "clients") -> None:
    """Draw how many samples everybody has, and of which classes, or else from which sources, into a PNG, PDF or SVG.

    Args:
        parts: int64 ``[n_i]`` for each owner.
        dataset: whose samples they are.
        picture: the file.
        owners: what they are called.
    """
    from matplotlib.figure import Figure  # slow to import

    counts, names, kind = counts_by_kind(parts, dataset)
    height = 0 if counts is None else min(8.0, max(2.0, 0.2 * len(names)))
    figure = Figure(figsize=(10, 2 + height), layout="constrained")
    panels = figure.subplots(2 if height else 1, 1, sharex=True, squeeze=False, height_ratios=[1.5, height] if height else None)
    bars, *below = panels[:, 0]
    bars.stairs([len(part) for part in parts], np.arange(len(parts) + 1) - 0.5, fill=True)
    bars.set_ylim(bottom=0)
    bars.set_ylabel("samples")
    bars.set_title(f"{len(dataset):,} samples among {len(parts):,} {owners}", fontsize=11)
    if counts is not None:
        image = below[0].imshow(np.where(counts, counts, np.nan), aspect="auto", interpolation="none", cmap="viridis")
        below[0].set_yticks(range(len(names)), [as_label(name) for name in names], fontsize=8)
        below[0].set_ylabel(kind)
        figure.colorbar(image, ax=below[0], label="samples", pad=0.01)
    panels[-1, 0].set_xlabel(f"{owners}, by number")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a source's name may be of letters that the font lacks
        figure.savefig(picture, dpi=100)


def counts_by_kind(parts: Sequence[Part], dataset: Dataset) -> tuple[np.ndarray | None, list[str], str]:
    """How many samples of each class, or else from each source, everybody has.

    Returns:
        int64 ``[kinds, owners]``, the kinds' names, and what they are; None where the data tells neither.
    """
    of_sample = dataset.labels if dataset.labels is not None else dataset.sources
    if of_sample is None:
        return None, [], ""
    values, kinds = np.unique(of_sample.numpy(), return_inverse=True)
    counts = np.stack([np.bincount(kinds[part], minlength=len(values)) for part in parts], axis=1)
    if dataset.labels is not None:
        return counts, [str(value) for value in values], "class"
    order = np.argsort(-counts.sum(1), kind="stable")
    kept, rest = order[:MOST_SOURCES], order[MOST_SOURCES:]
    names = [dataset.source_names[values[kind]] for kind in kept]
    if not len(rest):
        return counts[kept], names, "source"
    return np.vstack([counts[kept], counts[rest].sum(0)]), [*names, f"{len(rest):,} others"], "source"


def as_label(name: str) -> str:
    """A name as it is: a file's may hold what matplotlib takes for a formula, or what is no text."""
    return name.replace("$", r"\$").encode("utf-8", "replace").decode("utf-8")
