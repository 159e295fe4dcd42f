"""Did the models begin alike, and were they trained for the same thing? If not, their mean may be worth nothing."""

from __future__ import annotations

from collections.abc import Sequence

from disttrain.config import RunConfig, difference
from disttrain.merging.models import SavedModel
from disttrain.parameters import sha256_of
from disttrain.task import Task
from disttrain.training.seeds import seed_model

DECIDE_WEIGHTS = ("model", "training.seed", "training.initial_weights")
DECIDE_MEASURE = ("model", "data", "objective")


def doubts(models: Sequence[SavedModel], task: Task) -> list[str]:
    """What speaks against merging these models, or against what is measured of them.

    Args:
        models: of the same tensors by name, shape and dtype.
        task: the data's, for which models are built.
    """
    first, found = models[0], []
    for other in models[1:]:
        if changed := _changed(first, other, DECIDE_MEASURE):
            found.append(f"{changed}: all are measured, and the merged one is written, as {first.name} has it")
            break
    if (apart := _first_that_began_apart(models, task)) is not None:
        found.append(
            f"{first.name} and {apart.name} began from different weights ({_changed(first, apart, DECIDE_WEIGHTS)}): the mean of "
            "models that began apart is noise, at chance level where they never exchanged anything"
        )
    return found


def _first_that_began_apart(models: Sequence[SavedModel], task: Task) -> SavedModel | None:
    """Weights are drawn again and compared: a model that was loaded from elsewhere is the same whatever the seed."""
    first = models[0]
    suspects = [other for other in models[1:] if _changed(first, other, DECIDE_WEIGHTS)]
    initial = _initial_sha256(first.config, task) if suspects else ""
    return next((other for other in suspects if _initial_sha256(other.config, task) != initial), None)


def _initial_sha256(config: RunConfig, task: Task) -> str:
    seed_model(config.training.seed)
    module = config.model.build(task)
    config.initialise(module)
    return sha256_of(dict(module.named_parameters()))


def _changed(first: SavedModel, other: SavedModel, keys: Sequence[str]) -> str:
    """Of the settings under ``keys``, those that two models' configs do not share; empty if they have all in common."""
    changed = difference(first.config.model_dump(mode="json"), other.config.model_dump(mode="json"))
    of_these = [each for each in changed if any(each[0] == key or each[0].startswith(f"{key}.") for key in keys)]
    return ", ".join(f"{key} is {mine} in {first.name}, {its} in {other.name}" for key, mine, its in of_these)
