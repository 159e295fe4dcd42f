"""``disttrain merge``: load, compare, average, settle the buffers, measure every model and their mean, write the mean down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from disttrain.component import UserError
from disttrain.config import RunConfig
from disttrain.consensus import Mergeability
from disttrain.data import Corpus
from disttrain.launch.start import start_cpu
from disttrain.merging.average import load, load_mean, settle, training_inputs
from disttrain.merging.beginnings import doubts
from disttrain.merging.models import SavedModel, exported_models, refuse_difference, refuse_other_model, workers_models
from disttrain.merging.report import say, write
from disttrain.recording.folder import RunFolder, unused_directory
from disttrain.recording.progress import Display
from disttrain.simulation.evaluation import Validation
from disttrain.training.buffers import Policy, choice_of


@dataclass(frozen=True)
class MergeOptions:
    """What the command line says."""

    runs: tuple[Path, ...]
    """Run folders: of one, its workers' models are merged; of several, their results."""
    output: Path | None = None
    """Where to write; None: a new folder ``merged``, in that of the one run or in ``runs``."""
    step: int | None = None
    """Of the checkpoint, of one run; None: the newest that is whole."""
    buffers: Policy | None = None
    """What becomes of running statistics; None: what the (first) run's config says."""


def merge_runs(options: MergeOptions) -> Mergeability:
    """Merge saved models, say what that was worth, and write it.

    Raises:
        UserError: if there is nothing to merge, or what there is cannot be merged, measured or written.
    """
    display, warned = Display(1, True), list[str]()

    def warn(text: str) -> None:
        warned.append(text)
        display.say(f"warning: {text}")

    _check_output(options.output)
    description, models = _load(options, warn)
    refuse_difference(models)
    display.say(f"merging   {description}")
    config, names = models[0].config, [model.name for model in models]
    policy: Policy = options.buffers or config.strategy.buffers
    start_cpu(config.launch.threads, local_world_size=1)
    corpus, module, validation = _build(models, warn)
    display.say(f"data      {corpus.description}")
    _announce_buffers(policy, module, options, display)
    report = _measure(models, module, validation, corpus, policy)
    say(report, names, display)
    folder = _new_output(options)
    write(report, names, folder, module, config, {"merged_of": description, "buffers": policy, "warnings": warned})
    display.say(f"written   {folder.weights}, merge.json and {folder.config.name}")
    return report


def _load(options: MergeOptions, warn: Callable[[str], None]) -> tuple[str, list[SavedModel]]:
    """What is merged, in words, and the models."""
    if len(options.runs) > 1:
        if options.step is not None:
            raise UserError("--step chooses a checkpoint of one run, and of several runs their results are merged: remove it")
        models = exported_models(options.runs)
        return f"the results (model.safetensors) of {len(models)} runs", models
    run = options.runs[0]
    step, models = workers_models(run, options.step, warn)
    if len(models) == 1:
        raise UserError(f"{run} had one worker, so there is nothing to merge; give several runs to merge their results")
    return f"the live models of the {len(models)} workers of {run}, at step {step}", models


def _build(models: list[SavedModel], warn: Callable[[str], None]) -> tuple[Corpus, nn.Module, Validation]:
    """What the first model's config says: data, module, and how to measure it."""
    config: RunConfig = models[0].config
    try:
        config.data.check()
        corpus, objective = config.data.build(config.training.seed), config.objective.build()
        objective.check(corpus.task)
        module = config.model.build(corpus.task)
        refuse_other_model(models[0], module)
        for text in doubts(models, corpus.task):
            warn(text)
    except ValueError as error:
        raise UserError(str(error)) from error
    return corpus, module, Validation.of(config.training, corpus.validation, objective)


def _announce_buffers(policy: Policy, module: nn.Module, options: MergeOptions, display: Display) -> None:
    if running := choice_of(policy, module):
        display.say(f"buffers   {running}")
    elif options.buffers is not None:
        raise UserError(f"--buffers {options.buffers}: the model has no running statistics that could be settled: remove it")


def _measure(models: list[SavedModel], module: nn.Module, validation: Validation, corpus: Corpus, policy: Policy) -> Mergeability:
    """Measure one model after the other, then their mean; ``module`` is the mean from then on."""
    states = [model.state for model in models]
    local = [validation.measure(load(module, state)) for state in states]
    distance, norm = load_mean(module, states)
    settle(module, states, policy, training_inputs(models[0].config.training, corpus.train))
    return Mergeability(local, validation.measure(module), distance, norm)


def _check_output(output: Path | None) -> None:
    """Refuse a folder with something in it, before anything is computed."""
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} holds something already: name a new folder")


def _new_output(options: MergeOptions) -> RunFolder:
    if options.output is None:
        return RunFolder(unused_directory("merged", options.runs[0] if len(options.runs) == 1 else Path("runs")))
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {options.output} cannot be created: {error.strerror}") from None
    return RunFolder(options.output)
