"""What co2.py compares: methods, and the one setting of each that is tuned."""

from __future__ import annotations

from dataclasses import dataclass

from co2_trainings import CLASSIFIER, PLM, SEEDS
from strategy_trainings import Method, Result, Trainer, Training

PERIODS = (12, 48)
CLASSIFIER_STEPS, PLM_STEPS, PLM_PERIOD = 1200, 720, 12
LRS = (5e-3, 1e-2, 2e-2)
"""Of the classifier: the best for DDP is everybody's."""
PLM_LR = 8e-3
"""That of configs/quickstart.yaml."""
WARMUP = 10
"""Rounds that are waited for at the start, where that is said."""


Rows = dict[str, list[Result]]
"""Results by title; on the classifier by :func:`key`."""


@dataclass(frozen=True)
class Entry:
    """A row of the tables."""

    title: str
    method: Method
    grid: tuple[str, ...] = ()
    """Settings one of which the method has besides: the best on the classifier with seed 0, for each period."""


def momenta(*values: float) -> tuple[str, ...]:
    """A grid."""
    return tuple(f"outer_momentum={value}" for value in values)


def co2(momentum: float, penalty: str, *more: str) -> Method:
    """With settings that stand in the row's title."""
    return Method("co2", (f"outer_momentum={momentum}", f"penalty={penalty}", *more))


def predicted(pull: float, smoothing: float, lead: float, warmup_rounds: int = WARMUP) -> Method:
    """The library's where the lead is 1, else a rule of co2_rules.py."""
    settings = (f"pull={pull}", f"smoothing={smoothing}", f"warmup_rounds={warmup_rounds}")
    return Method("predicted_mean", settings) if lead == 1 else Method("ahead", (*settings, f"lead={lead}"))


CLIPS = ("clip=0.01", "clip=0.03", "clip=0.1")
DDP, LOCAL_SGD, COCOD = (
    Entry("DDP", Method("ddp")),
    Entry("local SGD", Method("local_sgd")),
    Entry("CoCoD-SGD", Method("cocod_sgd")),
)
SLOWMO = Entry("SlowMo", Method("slowmo"), momenta(0.2, 0.4, 0.6, 0.8))
EAGER = Entry("Eager DiLoCo", Method("eager_diloco"), momenta(0.0, 0.2, 0.35, 0.5))
OVERLAP = Entry("Overlap-Local-SGD", Method("overlap_local_sgd"), ("pull=0.2", "pull=0.4", "pull=0.6", "pull=0.8"))
OTHERS = (
    Entry("DiLoCo", Method("diloco"), momenta(0.3, 0.5, 0.7, 0.9)),
    Entry("Streaming DiLoCo", Method("streaming_diloco"), momenta(0.3, 0.5, 0.7, 0.9)),
)
CO2 = tuple(
    Entry(
        f"CO2 β={momentum:g}, {penalty} penalty{', clipped' if clips else ''}".replace("none", "no"),
        co2(momentum, penalty),
        clips,
    )
    for momentum in (0.2, 0.5)
    for penalty in ("none", "gap")
    for clips in ((), CLIPS)
)
CO2_DEFAULT = CO2[2]
"""The library's default settings."""
CO2_PLAIN = Entry("CO2 β=0, no penalty", co2(0.0, "none"))
CO2_STABLE = Entry("CO2 β=0.5, stable penalty", co2(0.5, "stable"))
CO2_WARM, CO2_WARMER = (
    Entry(f"CO2 β=0, gap penalty, {rounds} rounds waited for", co2(0.0, "gap", f"warmup_rounds={rounds}"))
    for rounds in (WARMUP, 15)
)
KEPT = Entry("CoCoD-SGD with β=0.4", Method("cocod_sgd", ("outer_momentum=0.4",)))
PREDICTED = Entry(f"predicted mean, {WARMUP} rounds waited for", predicted(0.65, 0.7, 1.0))
CLASSIFIED = (
    DDP, LOCAL_SGD, SLOWMO, *OTHERS, EAGER, COCOD, OVERLAP, CO2_PLAIN, *CO2, CO2_STABLE, CO2_WARM, KEPT, PREDICTED,
)  # fmt: skip
DECISIVE = (DDP, LOCAL_SGD, CO2_WARM, CO2_WARMER, PREDICTED)
"""On the PLM with all seeds."""
INDICATIVE = (
    CO2[0], CO2_DEFAULT, COCOD,
    *(
        Entry(
            f"CO2 β=0, Λ={value:g}, {WARMUP} rounds waited for",
            co2(0.0, "constant", f"penalty_value={value}", f"warmup_rounds={WARMUP}"),
        )
        for value in (1.5, 2.0)
    ),
    *(
        Entry(f"predicted mean, pull {pull:g}, β={smoothing:g}, lead {lead:g}", predicted(pull, smoothing, lead))
        for pull, smoothing, lead in ((0.65, 0.7, 1.5), (0.8, 0.7, 1.0), (0.65, 0.4, 1.0))
    ),
)  # fmt: skip
"""On the PLM with seed 0: without what makes them decisive, and settings around those that are."""


@dataclass(frozen=True)
class Findings:
    """All results; ``rates`` are DDP's at :data:`LRS`."""

    rates: list[Result]
    grids: Rows
    classifier: Rows
    plm: Rows


def best_of(results: list[Result]) -> Result:
    """The one of least loss."""
    return min(results, key=lambda result: result.loss)


def compare(trainer: Trainer) -> Findings:
    """Everything, in the order of its importance: the deadline may come before the end."""
    rates = trainer([Training(CLASSIFIER, DDP.method, 0, lr, SEEDS[0], CLASSIFIER_STEPS) for lr in LRS])
    lr = best_of(rates).training.lr if rates else LRS[1]
    plm = train_plm(trainer, DECISIVE, {}, SEEDS)
    grids = tune(trainer, lr)
    classifier = classify(trainer, CLASSIFIED, grids, lr)
    plm |= train_plm(trainer, INDICATIVE, grids)
    return Findings(rates, grids, classifier, plm)


def key(entry: Entry, period: int) -> str:
    """Of a row on the classifier."""
    return f"{entry.title} τ={period}"


def on_classifier(entry: Entry, method: Method, period: int, lr: float, seed: int = SEEDS[0]) -> tuple[str, Training]:
    """Its key, and the training; DDP has no period, and is trained once for all."""
    return key(entry, period), Training(CLASSIFIER, method, 0 if entry == DDP else period, lr, seed, CLASSIFIER_STEPS)


def tune(trainer: Trainer, lr: float) -> Rows:
    """Every grid, for every period."""
    return by_title(trainer, [
        on_classifier(entry, entry.method.having(setting), period, lr)
        for entry in CLASSIFIED for period in PERIODS for setting in entry.grid
    ])  # fmt: skip


def chosen(entry: Entry, period: int, grids: Rows) -> Method:
    """A method with the setting that was best; with the middle one of its grid if there was no time for any."""
    if not entry.grid:
        return entry.method
    tried = grids.get(key(entry, period))
    return best_of(tried).training.method if tried else entry.method.having(entry.grid[len(entry.grid) // 2])


def classify(trainer: Trainer, entries: tuple[Entry, ...], grids: Rows, lr: float) -> Rows:
    """All seeds of some rows, for every period."""
    return by_title(trainer, [
        on_classifier(entry, chosen(entry, period, grids), period, lr, seed)
        for seed in SEEDS for entry in entries for period in PERIODS
    ])  # fmt: skip


def train_plm(trainer: Trainer, entries: tuple[Entry, ...], grids: Rows, seeds: tuple[int, ...] = SEEDS[:1]) -> Rows:
    """Some rows with some seeds, with the settings that were best on the classifier."""
    return by_title(trainer, [
        (entry.title, Training(PLM, chosen(entry, PLM_PERIOD, grids), PLM_PERIOD, PLM_LR, seed, PLM_STEPS))
        for seed in seeds for entry in entries
    ])  # fmt: skip


def by_title(trainer: Trainer, plan: list[tuple[str, Training]]) -> Rows:
    """Results, as far as there was time; a training that several titles share is made once."""
    results = trainer(list(dict.fromkeys(training for _, training in plan)))
    made = {result.training: result for result in results}
    found: Rows = {}
    for title, training in plan:
        if training in made:
            found.setdefault(title, []).append(made[training])
    return found
