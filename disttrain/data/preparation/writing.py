"""The output of a preparation that may end at any moment: files that only grow, and a small one that says how far they count."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from disttrain.component import UserError
from disttrain.data.base import Tokens
from disttrain.data.prepared_files import ENDS, MANIFEST, PLAN, TOKENS, hash_of_file, replace_text, sha256_of_file

PROGRESS = "progress.json"
SAVE_SECONDS = 2.0
"""Between notes of how far it is: what a killed preparation loses."""


@dataclass(frozen=True)
class Progress:
    """How far a preparation is."""

    file: int = 0
    """The input that is being read."""
    place: int = 0
    """In it, where the next piece begins."""
    num_tokens: int = 0
    input_bytes: int = 0


class Writer:
    """Writes tokens, and remembers how far it is.

    Args:
        folder: of the output; made if it is not there.
        plan: everything that decides the tokens; a folder that was begun with another one is refused.
        dtype: of the tokens, as numpy writes it.

    Attributes:
        progress: what has been written, or of an interrupted preparation, what counts of it.

    Raises:
        UserError: if the folder cannot be used, or does not go on with this plan.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], dtype: str) -> None:
        self._folder, self._dtype, self.progress = folder, dtype, Progress()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            begun = (folder / PLAN).is_file()
            if begun:
                _refuse_other_plan(folder, json.loads((folder / PLAN).read_text()), plan)
                self.progress = _read_progress(folder / PROGRESS)
            elif any(folder.iterdir()):
                raise UserError(f"{folder} is not empty: name another --output")
            else:
                replace_text(folder / PLAN, json.dumps(plan))
            self._tokens = _reopen(folder / TOKENS, self.progress.num_tokens * np.dtype(dtype).itemsize)
            self._ends = _reopen(folder / ENDS, 8 * self.progress.file)
            self._hash = hash_of_file(folder / TOKENS)
        except OSError as error:
            raise UserError(f"{error.filename or folder} cannot be used: {error.strerror}") from None
        self._saved = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.save()
        self._tokens.close()
        self._ends.close()

    def write(self, tokens: Sequence[Tokens], place: int, input_bytes: int) -> None:
        """Append tokens of the current file's pieces, after which it goes on at ``place``."""
        for each in tokens:
            content = np.ascontiguousarray(each, dtype=self._dtype).data
            self._tokens.write(content)
            self._hash.update(content)
        written = self.progress.num_tokens + sum(map(len, tokens))
        self.progress = Progress(self.progress.file, place, written, input_bytes)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def end_file(self, input_bytes: int) -> None:
        """The current file is read to its end."""
        self._ends.write(np.array([self.progress.num_tokens], dtype="<i8").tobytes())
        self.progress = Progress(self.progress.file + 1, 0, self.progress.num_tokens, input_bytes)

    def save(self) -> None:
        """Make what has been written count, should this process end."""
        for file in (self._tokens, self._ends):
            file.flush()
            os.fsync(file.fileno())
        replace_text(self._folder / PROGRESS, json.dumps(asdict(self.progress)))
        self._saved = time.monotonic()

    def finish(self) -> dict[str, str]:
        """Write the last bytes; returns the SHA-256 of both files."""
        self.save()
        return {TOKENS: self._hash.hexdigest(), ENDS: sha256_of_file(self._folder / ENDS)}


def _reopen(path: Path, size: int) -> IO[bytes]:
    """For appending after its first ``size`` bytes: what was written later does not count.

    Raises:
        UserError: if it has fewer.
    """
    path.touch()
    if path.stat().st_size < size:
        raise UserError(f"{path} has {path.stat().st_size} bytes, and {size} were written: remove {path.parent} and begin again")
    os.truncate(path, size)
    return path.open("ab", buffering=2**20)


def _read_progress(path: Path) -> Progress:
    try:
        return Progress(**json.loads(path.read_text())) if path.exists() else Progress()
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged: remove {path.parent} and begin again") from None


def _refuse_other_plan(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise UserError naming the first thing that differs."""
    for key, value in new.items():
        if key != "inputs" and old.get(key) != value:
            raise UserError(f"{folder} was begun with {key} {old.get(key)!r}, not {value!r}: name another --output, or remove it")
    before, after = ({name: facts for name, *facts in plan["inputs"]} for plan in (old, new))
    changed = [name for name in (before | after) if before.get(name) != after.get(name)]
    if changed or old["inputs"] != new["inputs"]:
        which = changed[0] if changed else "their order"
        raise UserError(f"the files have changed since {folder} was begun ({which}): remove it and begin again")


def forget_progress(folder: Path) -> None:
    """Remove what only an unfinished folder needs."""
    for name in (PLAN, PROGRESS):
        (folder / name).unlink(missing_ok=True)


def is_finished(folder: Path) -> bool:
    """Whether there is nothing left to do in ``folder``."""
    return (folder / MANIFEST).is_file()
