"""The config of a run: its sections, and how a file and the command line become one.

    loaded = load_config("configs/quickstart.yaml", ["optimizer.name=sgd", "training.steps=200"])
    loaded.config.optimizer.build(module)
    print(show(loaded))            # every value, and where it comes from

What ``optimizer`` and the other components may be is not fixed here: it is whatever has been registered when the file
is loaded, which includes the modules that the file names under ``imports``.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, create_model, field_validator
from torch import nn

from disttrain.component import Config, Registry, UserError
from disttrain.compression import compressors, feedbacks
from disttrain.config_errors import ConfigError, dotted, explain
from disttrain.config_file import COMMAND_LINE, DEFAULT, Settings, apply_overrides, read_file
from disttrain.config_sections import CheckpointConfig, LaunchConfig, RecordingConfig, RunFolderConfig, TrainingConfig
from disttrain.config_yaml import leaves, write_yaml
from disttrain.data import DataConfig, data_sources
from disttrain.data.partitions import PartitionConfig, partitions
from disttrain.federated.algorithm import federated_algorithms
from disttrain.federated.arrivals import waitings
from disttrain.federated.participation import participations
from disttrain.federated.section import FederatedConfig
from disttrain.models import ModelConfig, models
from disttrain.objectives import ObjectiveConfig, objectives
from disttrain.optim import OptimizerConfig, ScheduleConfig, optimizers, schedules
from disttrain.recording.weights import load_weights
from disttrain.strategies import Strategy, StrategyConfig, strategies

__all__ = ["ConfigError", "LoadedConfig", "RunConfig", "difference", "dump", "load_config", "show"]

REGISTRIES: Mapping[str, Registry[Any]] = {
    each.section: each for each in (models, data_sources, partitions, objectives, optimizers, schedules, strategies)
}
DEFAULT_NAMES = {section: registry.default for section, registry in REGISTRIES.items()}
INNER_REGISTRIES: tuple[Registry[Any], ...] = (compressors, feedbacks, federated_algorithms, participations, waitings)
INNER_NAMES = {registry.section: registry.default for registry in INNER_REGISTRIES}
"""The same for components inside a component."""


def _default(registry: Registry[Any]) -> Any:
    return registry[registry.default].model_validate({})


class RunConfig(Config):
    """Everything that decides a run, validated. :func:`load_config` makes one from a file; so does the constructor."""

    imports: tuple[str, ...] = ()
    """Modules to import first, such as "my_package.optimizers": what they register can be used by its name."""
    model: SerializeAsAny[ModelConfig] = Field(default_factory=lambda: _default(models))
    """What is trained."""
    data: SerializeAsAny[DataConfig] = Field(default_factory=lambda: _default(data_sources))
    """What it is trained on."""
    partition: SerializeAsAny[PartitionConfig] = Field(default_factory=lambda: _default(partitions))
    """Which worker owns which training samples."""
    objective: SerializeAsAny[ObjectiveConfig] = Field(default_factory=lambda: _default(objectives))
    """What is minimised."""
    optimizer: SerializeAsAny[OptimizerConfig] = Field(default_factory=lambda: _default(optimizers))
    """How a gradient becomes a step."""
    schedule: SerializeAsAny[ScheduleConfig] = Field(default_factory=lambda: _default(schedules))
    """How the learning rate changes over the run."""
    strategy: SerializeAsAny[StrategyConfig] = Field(default_factory=lambda: _default(strategies))
    """What the workers exchange, and when."""
    federated: FederatedConfig | None = None
    """Of a run by `disttrain federated`: the clients, and what takes the place of optimizer and strategy; null: another run."""
    training: TrainingConfig = TrainingConfig()
    """How long to train, on how much at once, and how carefully."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save what the run needs to be continued."""
    recording: RecordingConfig = RecordingConfig()
    """What is written down while training."""
    run: RunFolderConfig = RunFolderConfig()
    """What the run is called and where it is kept."""
    launch: LaunchConfig = LaunchConfig()
    """What the workers run on, and how they reach each other."""

    @field_validator("training")
    @classmethod
    def _long_enough(cls, value: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        strategy = info.data.get("strategy")
        if strategy is not None:
            strategy.check_steps(value.steps)
        counts_steps = "federated" in info.data and info.data["federated"] is None  # else rounds, of which that section knows
        if counts_steps and value.stop_after is not None and value.stop_after > value.steps:
            raise ValueError(
                f"stop_after={value.stop_after} must be at most training.steps={value.steps}; the run would end before and "
                "ignore it"
            )
        return value

    @field_validator("recording")
    @classmethod
    def _traces_steps_of_the_run(cls, value: RecordingConfig, info: ValidationInfo) -> RecordingConfig:
        training = info.data.get("training")
        if training is not None and value.trace and value.trace_from >= training.steps:
            raise ValueError(f"trace_from must be below training.steps={training.steps}: nothing would be traced")
        return value

    @field_validator("run")
    @classmethod
    def _resuming_finds_the_run(cls, value: RunFolderConfig, info: ValidationInfo) -> RunFolderConfig:
        training = info.data.get("training")
        if training is not None and training.resume == "auto" and value.directory is None:
            raise ValueError("directory is needed for training.resume=auto; without one, every run gets a new folder")
        return value

    def check_world(self, world_size: int) -> None:
        """Check what depends on the number of workers.

        Raises:
            ConfigError: unless the batch can be divided equally among ``world_size`` workers, and the strategy is for so many.
        """
        if self.federated is not None:
            raise ConfigError(
                ["federated: is for `disttrain federated`, and would be ignored here: remove it, or use that command"]
            )
        try:
            self.strategy.check_world(world_size)
        except ValueError as error:
            raise ConfigError([f"strategy: {error}"]) from None
        batch_size, passes = self.training.batch_size, self.training.gradient_accumulation
        share = world_size * passes
        if batch_size % share == 0:
            return
        below, above = batch_size // share * share, math.ceil(batch_size / share) * share
        message = (
            f"training.batch_size: must be a multiple of {share} ({world_size} workers × "
            f"training.gradient_accumulation={passes}), such as {f'{below} or {above}' if below else above} (got {batch_size})"
        )
        raise ConfigError([message])

    def build_strategy(self) -> Strategy:
        """The strategy itself, for a run of so many steps."""
        strategy = self.strategy.build()
        strategy.total_steps = self.training.steps
        return strategy

    def initialise(self, module: nn.Module) -> None:
        """Load ``training.initial_weights`` into a model that was just built, if there are any.

        Raises:
            UserError: if they cannot be read, or are another model's.
        """
        path = self.training.initial_weights
        if path is not None:
            try:
                load_weights(module, Path(path))
            except UserError as error:
                raise UserError(f"training.initial_weights={path}: {error}") from None

    def check_data(self) -> None:
        """Check what can be seen of the data without loading it.

        Raises:
            ConfigError: if files are missing, or too few.
        """
        try:
            self.data.check()
        except ValueError as error:
            raise ConfigError([f"data: {error}"]) from None


@dataclass(frozen=True)
class LoadedConfig:
    """A config, and what its loading is worth telling about."""

    config: RunConfig
    origins: Mapping[str, str]
    """Of every value by its dotted key: "default", "command line", or file and line such as "quickstart.yaml:7"."""
    notices: tuple[str, ...]
    """What was adjusted: to be printed."""
    path: Path
    """The file."""

    def sets(self, section: str) -> bool:
        """Whether the file or the command line gives any value in ``section``."""
        keys = [key for key, origin in self.origins.items() if origin != str(DEFAULT)]
        return any(key == section or key.startswith(f"{section}.") for key in keys)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read a YAML file, apply ``overrides`` such as ``optimizer.lr=3e-4``, and validate the result.

    The working directory and the file's own are added to the end of ``sys.path``, for the user's own modules.

    Raises:
        ConfigError: with every mistake that was found.
    """
    settings = read_file(path)
    apply_overrides(settings, overrides, DEFAULT_NAMES | INNER_NAMES)
    _import_modules(settings, Path(path))
    _complete(settings, Path(path))
    config = _validate(settings)
    return LoadedConfig(config, _origins(settings, config), tuple(settings.notices), Path(path))


def show(loaded: LoadedConfig) -> str:
    """The config as YAML, with the origin of each value as a comment; it loads again as the same config."""
    return write_yaml(_tree(loaded.config), lambda path: loaded.origins[dotted(path)])


def dump(config: RunConfig) -> str:
    """The config as YAML, every value written out; it loads again as the same config."""
    return write_yaml(_tree(config))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted key, old and new value of everything that differs; None stands for a key that only the other has.

    Args:
        old: a config as plain values, ``config.model_dump(mode="json")``.
        new: another one.
    """
    before, after = dict(leaves(old)), dict(leaves(new))
    paths = dict.fromkeys([*before, *after])
    pairs = [(dotted(path), before.get(path), after.get(path)) for path in paths]
    return [(key, was, becomes) for key, was, becomes in pairs if was != becomes]


def _tree(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _import_modules(settings: Settings, file: Path) -> None:
    """Import what the config names; a failure ends loading, for without the module other names look like mistakes."""
    sys.path += [each for each in dict.fromkeys([os.getcwd(), str(file.absolute().parent)]) if each not in sys.path]
    importlib.invalidate_caches()
    names = settings.tree.get("imports")
    failures = 0
    for index, name in enumerate(names if isinstance(names, list) else []):
        try:
            importlib.import_module(str(name))
        except (Exception, SystemExit) as error:  # a user's module may do anything while it is imported
            reason = " ".join(str(error).split())
            settings.complain(("imports", index), f"{name} cannot be imported: {type(error).__name__}: {reason}")
            failures += 1
    if failures:
        raise _error(settings)


def _complete(settings: Settings, file: Path) -> None:
    """Fill in every component's name, and the run's; a section of which all keys are commented out is an empty one."""
    for section in RunConfig.model_fields.keys() - {"imports", "federated"}:
        if settings.tree.get(section) is None:
            settings.tree[section] = {}
    for section, name in (DEFAULT_NAMES | {"run": _safe_name(file)}).items():
        _name(settings, (section,), settings.tree[section], name)
    for path, name in INNER_NAMES.items():
        outer, inner = path.split(".")
        if isinstance(around := settings.tree.get(outer), dict):
            _name(settings, (outer, inner), around.get(inner), name)


def _name(settings: Settings, path: tuple[str, ...], written: Any, name: str) -> None:
    """Give a component that was written without a name its default one."""
    if isinstance(written, dict) and written.get("name") is None:
        written["name"] = name
        settings.origins[*path, "name"] = DEFAULT


def _safe_name(file: Path) -> str:
    """The file's name without suffix and without what would be unwise in the name of a folder."""
    return re.sub("[^A-Za-z0-9._-]+", "-", file.stem).strip("-._")[:100] or "run"


def _validate(settings: Settings) -> RunConfig:
    """The config, or every mistake in it; what has a problem already is not reported a second time."""
    every = (*REGISTRIES.values(), *INNER_REGISTRIES)
    model = _loadable_class(tuple(registry[name] for registry in every for name in registry.names()))
    try:
        draft = model.model_validate_json(json.dumps(settings.tree))
    except ValidationError as error:
        known = {problem.path for problem in settings.problems}
        for path, message in explain(error.errors(), settings.tree, model):
            if path not in known and () not in known:  # (): the whole file cannot be read
                settings.complain(path, message)
    if settings.problems:
        raise _error(settings)
    return RunConfig(**{name: getattr(draft, name) for name in RunConfig.model_fields})


@functools.lru_cache(maxsize=8)
def _loadable_class(registered: tuple[type, ...]) -> type[RunConfig]:
    """:class:`RunConfig` with each component one of the ``registered`` classes, which are here as the cache's key."""
    components: dict[str, Any] = {section: (registry.union(), ...) for section, registry in REGISTRIES.items()}
    components["federated"] = (FederatedConfig | None, None)
    return create_model("LoadableRunConfig", __base__=RunConfig, **components)


def _error(settings: Settings) -> ConfigError:
    """Every problem, in the order of the file's lines; the command line's last."""
    in_order = sorted(settings.problems, key=lambda each: (each.origin == COMMAND_LINE, each.origin.line or 0))
    return ConfigError(map(str, in_order))


def _origins(settings: Settings, config: RunConfig) -> dict[str, str]:
    """Where each value of the config was written, the file without its directories."""
    origins = {path: settings.origin(path) if settings.has(path) else DEFAULT for path, _ in leaves(_tree(config))}
    return {dotted(path): str(origin._replace(source=Path(origin.source).name)) for path, origin in origins.items()}
