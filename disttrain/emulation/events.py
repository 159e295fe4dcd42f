"""A script of what happens to the network and the workers during a run, as a YAML file holds it.

    - {at: 5s, bandwidth: 10mbit}                # all links; with `worker: 1`, that one's
    - {at: 20s, bandwidth: 100mbit/10mbit, worker: 1}
    - {at: 30s, cut: 1}                          # worker 1's link
    - {at: 35s, restore: 1}
    - {at: 50s, freeze: 0}                       # its process, by SIGSTOP
    - {at: 52s, thaw: 0}
    - {at: 60s, kill: 1}                         # by SIGKILL: a failure, for --max-restarts to mend or not
    - {at: 70s, restart: 1}                      # kill it, and start all again from the newest whole checkpoint

Times count from the moment at which training begins.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from disttrain.component import Config
from disttrain.config_errors import ConfigError, KeyPath, Origin, Problem, dotted, explain
from disttrain.config_file import Settings
from disttrain.config_yaml import read_yaml
from disttrain.emulation.bandwidth import parse_link, parse_links
from disttrain.quantities import Duration, format_duration

ACTIONS = ("bandwidth", "cut", "restore", "freeze", "thaw", "kill", "restart")

Worker = Annotated[int, Field(ge=0)]


class Event(Config):
    """One thing that happens, to one worker or, for a bandwidth, to all."""

    at: Duration
    """Since training began."""
    worker: Worker | None = None
    """Whose link gets the bandwidth; null: all links."""
    bandwidth: str | None = None
    """As ``--bandwidth`` takes it."""
    cut: Worker | None = None
    """Whose link is cut."""
    restore: Worker | None = None
    """Whose link works again."""
    freeze: Worker | None = None
    """Who stops running, without ending."""
    thaw: Worker | None = None
    """Who runs again."""
    kill: Worker | None = None
    """Who ends at once."""
    restart: Worker | None = None
    """Who ends at once, after which all workers are started again."""

    @property
    def action(self) -> str:
        """Which of :data:`ACTIONS` this is."""
        return next(name for name in ACTIONS if getattr(self, name) is not None)

    def __str__(self) -> str:
        if self.bandwidth is not None:
            return f"bandwidth {self.bandwidth}" + ("" if self.worker is None else f" for worker {self.worker}")
        return f"{self.action} worker {getattr(self, self.action)}"

    @field_validator("worker", *ACTIONS[1:])
    @classmethod
    def _names_a_worker(cls, value: int | None, info: ValidationInfo) -> int | None:
        workers = _workers(info)
        if value is not None and workers is not None and value >= workers:
            raise ValueError(f"must be one of the workers 0 to {workers - 1}")
        return value

    @field_validator("bandwidth")
    @classmethod
    def _is_a_bandwidth(cls, value: str | None, info: ValidationInfo) -> str | None:
        workers = _workers(info)
        if value is not None and workers is not None:
            _ = parse_links(value, workers) if info.data.get("worker") is None else parse_link(value)
        return value

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        given = [name for name in ACTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"must have one of {', '.join(ACTIONS)} (got {' and '.join(given) or 'none'})")
        if self.worker is not None and self.bandwidth is None:
            raise ValueError(f"worker goes with bandwidth only; {given[0]} names its worker itself")
        return self


class _Script(Config):
    events: tuple[Event, ...]


def _workers(info: ValidationInfo) -> int | None:
    """How many workers there are; None where that was checked before."""
    return None if info.context is None else info.context["workers"]


def load_events(path: str, workers: int) -> tuple[Event, ...]:
    """The events of a YAML file, in the order of their times.

    Args:
        path: of the file.
        workers: how many there are.

    Raises:
        ConfigError: with every mistake that was found.
    """
    settings = _read(path)
    try:
        script = _Script.model_validate_json(json.dumps(settings.tree), context={"workers": workers})
    except ValidationError as error:
        known = {problem.path for problem in settings.problems}
        for where, message in explain(error.errors(), settings.tree, _Script):
            if where not in known:
                settings.complain(where, message)
    if settings.problems:
        raise ConfigError(str(_numbered(problem)) for problem in settings.problems)
    return tuple(sorted(script.events, key=lambda event: event.at))


def _read(path: str) -> Settings:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError([f"--events {path}: cannot be read: {reason}"]) from None
    file = Origin(path)
    reading = read_yaml(text, ("events",), lambda line: file._replace(line=line))
    if not isinstance(reading.value, list) and not reading.problems:
        raise ConfigError([f"{path}: must be a list of events, such as: - {{at: 5s, cut: 1}}"])
    return Settings({"events": reading.value or []}, reading.origins | {(): file}, reading.problems)


def _numbered(problem: Problem) -> Problem:
    """The problem with ``event 3: cut`` instead of ``events[2].cut``."""
    _, *rest = problem.path
    if not rest:
        return problem._replace(path=())
    key = dotted(tuple(rest[1:]))
    name: KeyPath = (f"event {int(rest[0]) + 1}" + (f": {key}" if key else ""),)
    return problem._replace(path=name)


def as_record(event: Event, seconds: float) -> dict[str, Any]:
    """What ``events.jsonl`` says of an event that happened ``seconds`` after training began."""
    return {"at": event.at, "seconds": round(seconds, 3)} | event.model_dump(exclude_none=True, exclude={"at"})


def when(event: Event) -> str:
    """The event's time as text."""
    return str(format_duration(event.at))
