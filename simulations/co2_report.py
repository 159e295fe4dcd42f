"""What co2.py found, in tables and plain sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from co2_plan import (
    CLASSIFIED,
    CO2_DEFAULT,
    CO2_WARM,
    CO2_WARMER,
    COCOD,
    DDP,
    KEPT,
    LOCAL_SGD,
    OVERLAP,
    PERIODS,
    PLM_PERIOD,
    PLM_STEPS,
    PREDICTED,
    Entry,
    Findings,
    Rows,
    key,
)
from feedback_report import markdown
from strategy_trainings import Result

HIDDEN = (COCOD, OVERLAP, KEPT, PREDICTED)
"""Those beside CO2 and Eager DiLoCo that have a whole round for an exchange; the last is ours."""
TO_LOCAL_SGD, TO_DDP, PENALTY_WORTH, OVERLAPPED = 0.10, 0.20, 0.2, 0.05
"""Nats on the PLM: how far CO2 may be behind, what its penalty is to be worth, how near a rule beyond the paper is to come."""


def mean(results: Sequence[Result]) -> float:
    """Of the losses; infinite if one diverged."""
    return statistics.mean(result.loss for result in results) if results else math.nan


def gaps(results: Sequence[Result], to: Sequence[Result]) -> list[float]:
    """Differences of loss, of the seeds that both have."""
    others = {result.training.seed: result.loss for result in to}
    return [result.loss - others[result.training.seed] for result in results if result.training.seed in others]


def gap(results: Sequence[Result], to: Sequence[Result]) -> str:
    """Their mean, with half their range."""
    each = gaps(results, to)
    if not each or results is to:
        return ""
    spread = f" ± {(max(each) - min(each)) / 2:.3f}" if len(each) > 1 else ""
    return f"{statistics.mean(each):+.3f}{spread}"


def tuned(results: Sequence[Result], entry: Entry) -> str:
    """The setting that was chosen, if there was a choice."""
    return results[0].training.method.settings[-1].replace("outer_momentum", "β") if entry.grid and results else ""


def classifier_table(found: Findings) -> str:
    """Loss of every method, for every period, and how far it is from DDP's."""
    heads = ["classifier", *(f"{what} τ={period}" for period in PERIODS for what in ("loss", "tuned", "to DDP"))]
    lines = []
    for entry in CLASSIFIED:
        cells = [entry.title]
        for period in PERIODS:
            results = found.classifier.get(key(entry, period), [])
            ddp = found.classifier.get(key(DDP, period), [])
            cells += [f"{mean(results):.4f}", tuned(results, entry), gap(results, ddp)]
        lines.append(cells)
    return markdown(heads, lines)


def plm_table(found: Findings) -> str:
    """The PLM's losses, and how far they are from local SGD's and DDP's."""
    lines = [
        [title, f"{mean(results):.4f}", str(len(results)), gap(results, found.plm.get(LOCAL_SGD.title, [])),
         gap(results, found.plm.get(DDP.title, [])), f"{results[0].wire_bytes / 1e6:.1f} MB"]
        for title, results in found.plm.items()
    ]  # fmt: skip
    return markdown(["PLM", "validation loss", "seeds", "to local SGD", "to DDP", "sent"], lines)


# --- sentences ---------------------------------------------------------------------------------------------------------------


def sentences(found: Findings) -> list[str]:
    """What was to be shown, and whether it holds."""
    return [
        *targets(found.plm),
        *penalty_worth(found),
        *overlapped(found),
        f"The PLM's are short runs ({PLM_STEPS} steps of a small model): they say nothing of long runs or large models.",
    ]


def targets(plm: Rows) -> list[str]:
    """How far CO2 is behind local SGD and DDP on the PLM."""
    local_sgd, ddp = plm.get(LOCAL_SGD.title, []), plm.get(DDP.title, [])
    said = []
    for title in (entry.title for entry in (CO2_DEFAULT, CO2_WARM, CO2_WARMER)):
        behind = [gaps(plm.get(title, []), other) for other in (local_sgd, ddp)]
        if all(behind):
            to_local_sgd, to_ddp = map(statistics.mean, behind)
            held = "holds" if to_local_sgd <= TO_LOCAL_SGD and to_ddp <= TO_DDP else "does not hold"
            said.append(
                f"PLM, τ={PLM_PERIOD}: {title} is {to_local_sgd:+.3f} nats from local SGD and {to_ddp:+.3f} from DDP over "
                f"{seeds(behind[0])}: that it is within {TO_LOCAL_SGD:g} and {TO_DDP:g} {held}."
            )
    return said


def penalty_worth(found: Findings) -> list[str]:
    """By how much the gap penalty lowers the loss, all else equal."""
    places = {f"classifier τ={period}": (found.classifier, f" τ={period}") for period in PERIODS}
    places |= {f"PLM τ={PLM_PERIOD}": (found.plm, "")}
    said = []
    for momentum in (0.2, 0.5):
        worth = []
        for place, (rows, suffix) in places.items():
            without, having = (rows.get(f"CO2 β={momentum:g}, {which} penalty{suffix}", []) for which in ("no", "gap"))
            differences = gaps(without, having)
            if differences:
                enough = "" if statistics.mean(differences) >= PENALTY_WORTH else f", less than {PENALTY_WORTH:g}"
                worth.append(f"{statistics.mean(differences):+.3f} nats on the {place}{enough}")
        if worth:
            said.append(f"What the gap penalty is worth to CO2 with β={momentum:g}: {'; '.join(worth)}.")
    return said


def overlapped(found: Findings) -> list[str]:
    """How near to local SGD those come that hide their whole exchange and do without CO2's delay."""
    places = {f"PLM, τ={PLM_PERIOD}": (found.plm, "")}
    places |= {f"Classifier, τ={period}": (found.classifier, f" τ={period}") for period in PERIODS}
    said = []
    for place, (rows, suffix) in places.items():
        local_sgd = rows.get(LOCAL_SGD.title + suffix, [])
        for entry in HIDDEN:
            behind = gaps(rows.get(entry.title + suffix, []), local_sgd)
            if behind:
                near = "within" if statistics.mean(behind) <= OVERLAPPED else "not within"
                listed = ", ".join(f"{each:+.3f}" for each in behind)
                said.append(
                    f"{place}: {entry.title} is {statistics.mean(behind):+.3f} nats from local SGD ({listed}), {near} "
                    f"{OVERLAPPED:g}."
                )
    return said


def seeds(values: Sequence[float]) -> str:
    """How many."""
    return "1 seed" if len(values) == 1 else f"{len(values)} seeds"
