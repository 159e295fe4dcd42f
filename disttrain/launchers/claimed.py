"""The run folder of a launcher that starts workers: claimed before them, named to them, and gone if it was all a mistake."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from disttrain.component import UserError
from disttrain.config import LoadedConfig
from disttrain.recording.folder import RunFolder, unused_directory


class Told(Exception):
    """The user's mistake, which has been reported already."""


@contextmanager
def claimed_folder(loaded: LoadedConfig) -> Iterator[RunFolder]:
    """The folder that the config names, or a new one; a mistake found inside leaves nothing of a new one behind."""
    directory = loaded.config.run.directory
    new = directory is None or not Path(directory).exists()
    folder = RunFolder(unused_directory(str(loaded.config.run.name)) if directory is None else Path(directory))
    folder.claim(resume=loaded.config.training.resume == "auto")
    try:
        yield folder
    except (UserError, Told):
        if new:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def with_directory(overrides: Sequence[str], loaded: LoadedConfig, folder: RunFolder) -> list[str]:
    """The overrides for worker processes, which must all know a new folder."""
    return [*overrides, *([f"run.directory={folder.path}"] if loaded.config.run.directory is None else [])]
