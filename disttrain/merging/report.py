"""What a merge was worth, for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from disttrain.config import RunConfig, dump
from disttrain.consensus import Mergeability
from disttrain.parameters import sha256_of
from disttrain.recording.folder import RunFolder, write_atomically
from disttrain.recording.metrics import finite_or_none
from disttrain.recording.progress import Display
from disttrain.recording.weights import export_weights


def say(report: Mergeability, names: Sequence[str], display: Display) -> None:
    """Print a row for each model, their mean's and the merged one's, and how far apart they were."""
    rows = [*zip(names, report.local, strict=True), ("their mean", report.local_mean), ("merged", report.merged)]
    columns = ("model", *(f"validation {name}" for name in report.merged))
    display.table(columns, [(name, *(f"{measured[key]:.4f}" for key in report.merged)) for name, measured in rows])
    display.say(
        f"consensus distance {report.distance:.4g}: the models are {report.relative_distance:.1%} of the merged one's norm "
        "away from it (root mean square)"
    )
    display.say(report.sentence())


def write(
    report: Mergeability, names: Sequence[str], folder: RunFolder, module: nn.Module, config: RunConfig, facts: dict[str, Any]
) -> None:
    """Write the merged ``module`` and its report; with a config beside them, the folder can be merged again.

    Args:
        report: what was measured.
        names: of the models.
        folder: exists.
        module: has been merged.
        config: that the module was built from.
        facts: what else goes into ``merge.json``.
    """
    weights = {name: p.detach() for name, p in module.named_parameters()}
    models = [{"model": name} | dict(measured) for name, measured in zip(names, report.local, strict=True)]
    record = facts | {"models": models} | report.facts() | {"weights_sha256": sha256_of(weights)}
    export_weights(module, folder.weights)
    write_atomically(folder.config, dump(config))
    write_atomically(folder.path / "merge.json", json.dumps(_json(record), indent=2) + "\n")


def _json(value: Any) -> Any:
    """The value, with null for every number that JSON lacks."""
    if isinstance(value, dict):
        return {key: _json(each) for key, each in value.items()}
    return [_json(each) for each in value] if isinstance(value, list) else finite_or_none(value)
