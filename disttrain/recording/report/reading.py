"""A run folder as a report sees it: numbers only, whatever else somebody may have written into its files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from disttrain.component import UserError
from disttrain.recording.folder import RunFolder
from disttrain.recording.metrics import read_metrics

LARGEST_CONFIG_BYTES = 1_000_000


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run.

    Attributes:
        name: of the folder; longer where two are alike.
        path: of the folder.
        records: of ``metrics.jsonl``, finite numbers only, each with a ``step``.
        summary: ``summary.json``; empty while the run goes on, or if it failed.
        config: of ``config.yaml``: dotted keys, values as text.
    """

    name: str
    path: Path
    records: list[dict[str, float]]
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)

    def number(self, key: str) -> float | None:
        """A number of the summary, else of the last record that has it."""
        if (value := _finite(self.summary.get(key))) is not None:
            return value
        return next((record[key] for record in reversed(self.records) if key in record), None)

    def text(self, key: str, otherwise: str = "") -> str:
        """A text of the summary."""
        value = self.summary.get(key)
        return value if isinstance(value, str) else otherwise

    @property
    def federated(self) -> bool:
        """Whether steps are a federation's rounds."""
        return any("bytes_up" in record for record in self.records)

    @property
    def loss_label(self) -> str:
        """Of an axis."""
        unit = self.text("unit")
        return f"loss (nats per {unit})" if unit else "loss (nats)"


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Several runs, each under a name of its own.

    Raises:
        UserError: if one is no run, has no records, or is named twice.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        if (resolved := path.resolve()) in seen:
            raise UserError(f"{path} is named twice (as {seen[resolved]} too): a report shows each run once")
        seen[resolved] = path
    names = [path.resolve().name for path in paths]
    return [read_run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names, strict=True)]


def read_run(path: Path, name: str | None = None) -> RunRecord:
    """A run's records, summary and config, whether it has ended or not.

    Raises:
        UserError: if the folder holds no run, or no record that can be read.
    """
    folder = RunFolder(path)
    if not folder.metrics.is_file():
        what = "is not a folder" if not path.is_dir() else f"holds no {folder.metrics.name}"
        raise UserError(f"{path} {what}: a report needs the folder of a run, such as runs/quickstart")
    try:
        records = [_numbers(record) for record in read_metrics(folder.metrics) if isinstance(record, dict)]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder.metrics} cannot be read: {error}") from None
    records = [record for record in records if "step" in record]
    if not records:
        raise UserError(f"{folder.metrics} has no record of a step: the run ended before its first, or the file is damaged")
    return RunRecord(name or path.resolve().name, path, records, _summary(folder.summary), _config(folder.config))


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    numbers = {key: _finite(value) for key, value in record.items()}
    return {key: value for key, value in numbers.items() if value is not None}


def _finite(value: Any) -> float | None:
    """The value as a float, if it is a finite number of a size that a float has."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or half of one
        return {}
    return summary if isinstance(summary, dict) else {}


def _config(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > LARGEST_CONFIG_BYTES:
            return {}
        loaded = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError):
        return {}
    return dict(_flat(loaded, ""))


def _flat(value: Any, prefix: str) -> list[tuple[str, str]]:
    """``{"a": {"b": 1}}`` as ``a.b``, ``1``; a list is one value."""
    if isinstance(value, dict) and value:
        return [pair for key, each in value.items() for pair in _flat(each, f"{prefix}.{key}" if prefix else str(key))]
    if not prefix:
        return []
    return [(prefix, "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value))]
