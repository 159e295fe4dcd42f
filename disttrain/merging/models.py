"""Which models are to be merged: those of a run's workers, from its checkpoint, or the results of several runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from disttrain.component import UserError
from disttrain.config import RunConfig, load_config
from disttrain.recording.checkpoint import CheckpointError, CheckpointStore, lost_workers
from disttrain.recording.folder import RunFolder
from disttrain.recording.weights import read_weights


@dataclass(frozen=True)
class SavedModel:
    """A model as it lies on disk.

    Args:
        name: what it is called in messages.
        state: its parameters, tied ones once, and the buffers that a ``state_dict`` holds.
        config: of the run that it is from.
    """

    name: str
    state: Mapping[str, Tensor]
    config: RunConfig


def workers_models(run: Path, step: int | None, warn: Callable[[str], None]) -> tuple[int, list[SavedModel]]:
    """Every worker's live model in a checkpoint of ``run``, and the step that the checkpoint is of.

    Args:
        run: the run's folder.
        step: whose checkpoint; None: the newest that is whole.
        warn: is told of newer ones that are damaged.

    Raises:
        UserError: if there is no such checkpoint, or its workers do not hold several whole models.
    """
    config = _config(run)
    store = CheckpointStore(RunFolder(run).checkpoints, 0, [0], token="")  # only to read
    step = _newest_whole(store, run, warn) if step is None else _whole(store, step)
    _refuse_shards(run, config)
    try:
        facts = store.facts(step)
        everybody = store.load_everybody(step, facts["workers"], ("model.", "buffer."))
    except CheckpointError as error:
        raise UserError(str(error)) from None
    if not any(name.startswith("model.") for name in everybody[0]):
        raise UserError(
            f"under strategy.name={config.strategy.name} all workers of {run} hold one model, so there is nothing to merge: "
            "it is the model.safetensors there; give several runs to merge theirs"
        )
    ranks = sorted(set(range(facts["workers"])) - lost_workers(facts))
    return step, [SavedModel(f"worker {rank}", _state(own), config) for rank, own in zip(ranks, everybody, strict=True)]


def exported_models(runs: Sequence[Path]) -> list[SavedModel]:
    """The result of each of several runs, its ``model.safetensors``.

    Raises:
        UserError: if one has none, or is given twice.
    """
    seen: dict[Path, Path] = {}
    for run in runs:
        if run.resolve() in seen:
            raise UserError(f"{run} is given twice: each model counts once")
        seen[run.resolve()] = run
    return [SavedModel(str(run), config=_config(run), state=read_weights(run)) for run in runs]


def refuse_difference(models: Sequence[SavedModel]) -> None:
    """Raise UserError, naming the first difference, unless all models have the same tensors by name, shape and dtype."""
    first = models[0]
    for other in models[1:]:
        if found := _difference(first.name, first.state, other.name, other.state):
            raise UserError(f"{first.name} and {other.name} cannot be merged: {found}")


def refuse_other_model(model: SavedModel, module: nn.Module) -> None:
    """Raise UserError unless ``module``, built from the model's config, has just its tensors."""
    kept = module.state_dict(keep_vars=True).keys()
    built = dict(module.named_parameters()) | {name: buffer for name, buffer in module.named_buffers() if name in kept}
    if found := _difference(model.name, model.state, "its config", built):
        raise UserError(
            f"{model.name} is not the model that its config.yaml describes ({found}): a script's own model is merged by "
            "disttrain.consensus.merge, tensor by tensor"
        )


def _difference(first_name: str, first: Mapping[str, Tensor], other_name: str, other: Mapping[str, Tensor]) -> str:
    """The first tensor that two models do not share; empty if they have all in common."""
    for name in sorted(first.keys() | other.keys()):
        if name not in first or name not in other:
            has, lacks = (first_name, other_name) if name in first else (other_name, first_name)
            return f"{name} is in {has}, but not in {lacks}"
        mine, its = (f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (first[name], other[name]))
        if mine != its:
            return f"{name} is {mine} in {first_name}, {its} in {other_name}"
    return ""


def _config(run: Path) -> RunConfig:
    path = RunFolder(run).config
    if not path.is_file():
        raise UserError(f"{run} is not a run's folder: there is no {path}")
    config = load_config(path).config
    if config.launch.emulated_step_time is not None:
        raise UserError(f"{run} learned nothing, for its compute was emulated (launch.emulated_step_time): nothing can be merged")
    return config


def _newest_whole(store: CheckpointStore, run: Path, warn: Callable[[str], None]) -> int:
    steps = store.steps()
    for step in steps:
        if (fault := store.fault(step)) is None:
            return step
        warn(fault)
    what = "no checkpoint that is whole" if steps else "no checkpoint, as a simulation or an unfinished run may have none"
    raise UserError(f"{run} has {what}, so there are no workers' models to merge; give several runs to merge their results")


def _whole(store: CheckpointStore, step: int) -> int:
    if step not in store.steps():
        there = ", ".join(map(str, sorted(store.steps()))) or "none"
        raise UserError(f"--step {step}: there is no such checkpoint in {store.directory}; there are: {there}")
    if fault := store.fault(step):
        raise UserError(f"--step {step}: {fault}")
    return step


def _refuse_shards(run: Path, config: RunConfig) -> None:
    if getattr(config.strategy, "inner", None) == "fsdp":
        raise UserError(f"each worker of {run} saves shards of a model (strategy.inner=fsdp), and whole ones can be merged: "
                        "its result is the model.safetensors there")  # fmt: skip


def _state(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.split(".", 1)[1]: tensor for name, tensor in own.items()}
