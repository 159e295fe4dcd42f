"""The report's tables: what each run came to, and what they were told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from disttrain.recording.progress import counted_things, readable_bytes, readable_seconds
from disttrain.recording.report.curves import COLOURS
from disttrain.recording.report.reading import RunRecord

NAMES = ("run.name", "run.directory")
"""Settings that tell runs apart and mean nothing."""
TASK = ("data.", "objective.", "model.", "partition.")
"""Settings without which losses cannot be compared."""


@dataclass(frozen=True)
class Column:
    """Of the summary table.

    Attributes:
        title: of the column.
        value: of a run; None where it has none.
        show: a value, readable.
        best: which of the runs to mark; None: a column of facts.
        verdict: what the best is, as a headline; empty: none.
    """

    title: str
    value: Callable[[RunRecord], float | str | None]
    show: Callable[[float], str] = lambda value: f"{value:,.0f}"
    best: Callable[[Sequence[float]], float] | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Cell:
    """Of a table."""

    title: str
    text: str
    best: bool = False


@dataclass(frozen=True)
class Headline:
    """What is seen first."""

    title: str
    value: str
    more: str


def _strategy(run: RunRecord) -> str | None:
    """What decides the exchange; of a federation, its algorithm."""
    return run.config.get("federated.algorithm.name") or run.text("strategy") or run.config.get("strategy.name")


def _optimizer(run: RunRecord) -> str | None:
    return None if run.federated else run.text("optimizer") or run.config.get("optimizer.name")


def _less_than_ddp(run: RunRecord) -> float | None:
    sent, ddp = run.number("wire_bytes"), run.number("ddp_wire_bytes")
    return None if sent is None or not ddp else sent / ddp


def _exposed(run: RunRecord) -> float | None:
    waiting, seconds = run.number("exposed_seconds"), run.number("seconds")
    return None if waiting is None or not seconds else waiting / seconds


def _speed(run: RunRecord) -> float | None:
    tokens, seconds = run.number("tokens"), run.number("seconds")
    return None if tokens is None or not seconds else tokens / seconds


def _percent(value: float) -> str:
    return f"{value:.1%}" if value < 10 else f"{value:,.0f} times"


def _time(seconds: float) -> str:
    return readable_seconds(seconds) if seconds >= 60 else f"{seconds:.1f}s"


def _loss(value: float) -> str:
    return f"{value:.4f}"


COLUMNS = (
    Column("Strategy", _strategy),
    Column("Optimizer", _optimizer),
    Column("Workers", lambda run: run.number("workers")),
    Column("Steps", lambda run: run.number("steps") or run.number("step")),
    Column("Training loss", lambda run: run.number("final_loss") or run.number("loss"), _loss, min),
    Column("Validation loss", lambda run: run.number("validation_loss"), _loss, min, "Lowest validation loss"),
    Column("Accuracy", lambda run: run.number("validation_accuracy"), _percent, max, "Highest accuracy"),
    Column("Sent per worker", lambda run: run.number("wire_bytes"), readable_bytes, min, "Fewest bytes"),
    Column("Of torch DDP’s", _less_than_ddp, _percent, min),
    Column("Sent by clients", lambda run: run.number("bytes_up"), readable_bytes, min, "Fewest bytes"),
    Column("Time", lambda run: run.number("seconds"), _time, min, "Fastest"),
    Column("Tokens/s", _speed, best=max),
    Column("Waiting", _exposed, _percent, min),
    Column("Memory", lambda run: run.number("peak_memory_bytes"), readable_bytes, min),
)  # fmt: skip


def summary_table(runs: Sequence[RunRecord]) -> tuple[list[list[Cell]], list[Headline]]:
    """A row of cells for each run, and a headline for what matters most; columns that no run has are left out."""
    rows: list[list[Cell]] = [[] for _ in runs]
    headlines = []
    comparable = same_task(runs)
    for column in COLUMNS:
        values = [column.value(run) for run in runs]
        if all(value is None for value in values):
            continue
        numbers = [value for value in values if isinstance(value, float)]
        compared = column.best is not None and len(runs) > 1 and len(numbers) > 1
        best = column.best(numbers) if column.best and compared and (comparable or not _of_quality(column)) else None
        title = column.title
        if title == "Tokens/s":
            title = f"{counted_things(runs[0].text('unit')).capitalize()}/s"
        for row, value in zip(rows, values, strict=True):
            text = "–" if value is None else value if isinstance(value, str) else column.show(value)
            row.append(Cell(title, text, best is not None and value == best and len(set(numbers)) > 1))
        if column.verdict and numbers and (best is not None or len(runs) == 1):
            headlines.append(_headline(column, runs, values, best))
    return rows, headlines


def _headline(column: Column, runs: Sequence[RunRecord], values: Sequence[float | str | None], best: float | None) -> Headline:
    number = best if best is not None else values[0]
    assert isinstance(number, float)
    run = runs[values.index(number)]
    share = _less_than_ddp(run) if "bytes" in column.verdict else None
    more = [column.show(number)] if len(runs) > 1 else []
    more += [f"{_percent(share)} of torch DDP’s"] if share is not None else []
    return Headline(*(column.verdict, run.name) if len(runs) > 1 else (column.title, column.show(number)), ", ".join(more))


def _of_quality(column: Column) -> bool:
    return "loss" in column.title or column.title == "Accuracy"


def same_task(runs: Sequence[RunRecord]) -> bool:
    """Whether their losses may be compared: they have the same data, model and objective."""
    tasks = [{key: value for key, value in run.config.items() if key.startswith(TASK)} for run in runs]
    return all(task == tasks[0] for task in tasks)


def differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Settings in which the runs differ, and each run's value; a setting that a run's choices do not have is a dash."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = [(key, [run.config.get(key, "–") for run in runs]) for key in keys if key not in NAMES]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def chips(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Each run's name and colour."""
    return [(run.name, COLOURS[index % len(COLOURS)]) for index, run in enumerate(runs)]
