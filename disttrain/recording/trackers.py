"""Weights & Biases, as an option that never stops training: what fails is said once, and the run goes on without it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal


class WandbTracker:
    """Sends records to a wandb run.

    Args:
        project: of wandb.
        mode: ``online`` or ``offline`` (``wandb sync DIRECTORY/wandb/offline-run-*`` uploads it later).
        directory: the run folder; its name becomes the run's.
        config: shown in wandb.
        warn: told once what failed.
    """

    def __init__(
        self,
        project: str,
        mode: Literal["online", "offline"],
        directory: Path,
        config: dict[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self._run: Any = None
        self._warn = warn
        try:
            self._run = _open(project, mode, directory, config)
        except Exception as error:  # not installed, not logged in, no network …
            self._turn_off(error)

    def log(self, record: dict[str, Any]) -> None:
        """One logged step."""
        values = {key: value for key, value in record.items() if key != "step"}
        self._guard(lambda: self._run.log(values, step=record["step"]))

    def finish(self, summary: dict[str, Any]) -> None:
        """The run's result; closes the wandb run."""
        self._guard(lambda: self._run.summary.update(summary))
        self._guard(lambda: self._run.finish(quiet=True))
        self._run = None

    def _guard(self, action: Callable[[], Any]) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:  # whatever a tracker does, training goes on
            self._turn_off(error)

    def _turn_off(self, error: Exception) -> None:
        self._run = None
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        self._warn(f"wandb is off for the rest of this run ({reason})")


def _open(project: str, mode: Literal["online", "offline"], directory: Path, config: dict[str, Any]) -> Any:
    import wandb

    id_file = directory / "wandb_id"  # a resumed run keeps its id
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    return wandb.init(
        project=project,
        mode=mode,
        name=directory.name,
        id=id_file.read_text(),
        resume="allow",
        dir=str(directory),
        config=config,
        settings=wandb.Settings(silent=True, disable_git=True, disable_code=True),
    )
