"""Lines, sentences and picture of federated_claims.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure


class Result(Protocol):
    """See federated_claims.py."""

    name: str
    lr: float
    server_lr: float
    accuracy: float


PEERS = ("fedavg", "scaffold", "fedpage p=.05")
"""What FedAMD is held against."""


def typical(results: Sequence[Result], what: str) -> float:
    """The median over seeds of ``rounds``, ``megabytes_up`` or ``gradients``; infinite if most never arrive."""
    values = [getattr(result, what) for result in results]
    return float(statistics.median(float("inf") if value is None else value for value in values))


def accuracy(results: Sequence[Result]) -> float:
    """In per cent, mean over seeds."""
    return 100 * statistics.mean(result.accuracy for result in results)


def line(results: Sequence[Result]) -> str:
    """A row of the table."""
    first, spread = results[0], 0.0
    if len(results) > 1:
        spread = 100 * statistics.stdev(result.accuracy for result in results)
    rounds = "/".join("never" if (count := getattr(each, "rounds", None)) is None else str(count) for each in results)
    return (
        f"{first.name:<20} lr {first.lr:<5g} server {first.server_lr:<3g} {accuracy(results):>5.1f} ± {spread:<4.1f} %   "
        f"rounds {rounds:<13} MB up {typical(results, 'megabytes_up'):<8.3g} gradients {typical(results, 'gradients'):,.0f}"
    )


def verdicts(table: Mapping[str, Sequence[Result]]) -> list[str]:
    """What reproduces, in plain sentences."""
    said = []
    for name, results in table.items():
        if "%" in name and "scaffold" in table:
            less = typical(table["scaffold"], "megabytes_up") / typical(results, "megabytes_up")
            said.append(
                f"{name}: {accuracy(results) - accuracy(table['scaffold']):+.1f} points of accuracy against scaffold at the end, "
                f"{less:.2g} times less sent until the target."
            )
        if name.startswith("fedamd"):
            peers = [peer for peer in PEERS if peer in table]
            slower = [peer for peer in peers if typical(results, "rounds") < typical(table[peer], "rounds")]
            said.append(f"{name}: fewer rounds to the target than {', '.join(slower) or 'none'} of {', '.join(peers)}.")
    return said


def draw(table: Mapping[str, Sequence[Result]], picture: Path) -> None:
    """Medians of rounds, bytes and gradients to the target, as bars; what never arrives has none."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, what in zip(panels, ("rounds", "megabytes_up", "gradients"), strict=True):
        values = [typical(results, what) for results in table.values()]
        panel.barh(list(table), [0 if value == float("inf") else value for value in values], log=what != "rounds")
        panel.set_title(f"{what.replace('_', ' ')} to 85 % accuracy", fontsize=10)
        panel.grid(alpha=0.3, axis="x")
    panels[0].invert_yaxis()
    figure.savefig(picture, dpi=110)
