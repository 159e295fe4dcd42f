"""Weights & Biases and TensorBoard, as options that never stop training: what fails is said once, and the run goes on without."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

Warn = Callable[[str], None]


class WandbSettings(Protocol):
    """Of ``recording.wandb``."""

    @property
    def project(self) -> str: ...  # noqa: D102
    @property
    def mode(self) -> Literal["online", "offline"]: ...  # noqa: D102


class TrackerSettings(Protocol):
    """Of ``recording``: which trackers there are."""

    @property
    def wandb(self) -> WandbSettings | None: ...  # noqa: D102
    @property
    def tensorboard(self) -> bool: ...  # noqa: D102


def open_trackers(settings: TrackerSettings, directory: Path, config: dict[str, Any], step: int, warn: Warn) -> list[Tracker]:
    """Those that are wanted.

    Args:
        settings: which.
        directory: the run folder.
        config: the run's, to be shown.
        step: that the run goes on from.
        warn: told once of each that fails.
    """
    trackers: list[Tracker] = []
    if settings.wandb is not None:
        trackers.append(WandbTracker(settings.wandb.project, settings.wandb.mode, directory, config, warn))
    if settings.tensorboard:
        trackers.append(TensorBoardTracker(directory, config, step, warn))
    return trackers


class Tracker:
    """Takes the records of a run; once something has failed, it takes nothing.

    Args:
        name: for the warning.
        warn: told once what failed.
    """

    def __init__(self, name: str, warn: Warn) -> None:
        self._name, self._warn, self._is_on = name, warn, True

    def log(self, record: dict[str, Any]) -> None:
        """One logged step."""
        self._guard(lambda: self._log(record))

    def finish(self, summary: dict[str, Any]) -> None:
        """The run's result; closes the tracker."""
        self._guard(lambda: self._finish(summary))
        self._is_on = False

    def _guard(self, action: Callable[[], None]) -> None:
        if not self._is_on:
            return
        try:
            action()
        except Exception as error:  # not installed, not logged in, no network, no space … whatever it is, training goes on
            self._is_on = False
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._warn(f"{self._name} is off for the rest of this run ({reason})")

    def _log(self, record: dict[str, Any]) -> None:
        raise NotImplementedError

    def _finish(self, summary: dict[str, Any]) -> None:
        raise NotImplementedError


class WandbTracker(Tracker):
    """Sends records to a wandb run.

    Args:
        project: of wandb.
        mode: ``online`` or ``offline`` (``wandb sync DIRECTORY/wandb/offline-run-*`` uploads it later).
        directory: the run folder; its name becomes the run's. It keeps the run's id, which a resumed run goes on under.
        config: shown in wandb.
        warn: told once what failed.
    """

    def __init__(
        self, project: str, mode: Literal["online", "offline"], directory: Path, config: dict[str, Any], warn: Warn
    ) -> None:
        super().__init__("wandb", warn)
        self._guard(lambda: self._open(project, mode, directory, config))

    def _open(self, project: str, mode: Literal["online", "offline"], directory: Path, config: dict[str, Any]) -> None:
        import wandb

        id_file = directory / "wandb_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=project,
            mode=mode,
            name=directory.name,
            id=id_file.read_text(),
            resume="allow",
            dir=str(directory),
            config=config,
            settings=wandb.Settings(silent=True, disable_git=True, disable_code=True),
        )

    def _log(self, record: dict[str, Any]) -> None:
        self._run.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])

    def _finish(self, summary: dict[str, Any]) -> None:
        self._run.summary.update(summary)
        self._run.finish()


class TensorBoardTracker(Tracker):
    """Writes event files into the run folder's ``tensorboard``: ``tensorboard --logdir runs`` shows all runs there are.

    Args:
        directory: the run folder.
        config: shown as text.
        step: that the run goes on from: what an earlier start has logged beyond it is not shown any more.
        warn: told once what failed.
    """

    def __init__(self, directory: Path, config: dict[str, Any], step: int, warn: Warn) -> None:
        super().__init__("TensorBoard", warn)
        self._guard(lambda: self._open(directory, config, step))

    def _open(self, directory: Path, config: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # torch has the class, the extra `tensorboard` what it needs

        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)
        text = "\n".join(f"    {section}: {values}" for section, values in config.items())  # indented, Markdown takes it as it is
        self._writer.add_text("config", text, global_step=step)

    def _log(self, record: dict[str, Any]) -> None:
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(key, value, global_step=record["step"])
        self._writer.flush()  # who looks on sees what there is

    def _finish(self, summary: dict[str, Any]) -> None:
        self._writer.close()
