"""A folder of prepared tokens, and how it is told from a damaged one.

=============  ====================================================================================
tokens.bin     the tokens of all documents in order, little-endian, of the manifest's type
ends.bin       one past the last token of each input file, int64, little-endian
manifest.json  written last: sizes and SHA-256 of both, the tokenizer, and what each input file was
=============  ====================================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disttrain.data.base import Tokens, Unit

TOKENS, ENDS, MANIFEST, PLAN = "tokens.bin", "ends.bin", "manifest.json", "plan.json"
FORMAT = 1
DTYPES = ("<u1", "<u2", "<u4")
BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class Manifest:
    """What a folder of prepared tokens holds."""

    dtype: str
    """Of the tokens, as numpy writes it."""
    num_tokens: int
    unit: Unit
    vocabulary_size: int
    tokenizer: str
    """SHA-256 of its file, or "bytes"."""
    sha256: dict[str, str]
    """Of each file."""
    sources: tuple[str, ...]
    """What each input file's documents belong to."""
    input_bytes: int

    def write(self, folder: Path) -> None:
        """Make the folder whole: nobody reads one without a manifest."""
        replace_text(folder / MANIFEST, json.dumps({"format": FORMAT} | asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Of a folder whose files have the right sizes.

        Raises:
            ValueError: if it is not there, not finished, damaged, or of another format; with the file's name.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(_why_no_manifest(folder))
        try:
            values = json.loads(path.read_bytes())
            number = values.pop("format")
            manifest = cls(**values | {"sources": tuple(values["sources"])})
            sizes = {TOKENS: manifest.num_tokens * np.dtype(manifest.dtype).itemsize, ENDS: 8 * len(manifest.sources)}
            sound = manifest.dtype in DTYPES and manifest.unit in ("byte", "token") and set(manifest.sha256) == set(sizes)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): prepare the folder again") from None
        if number != FORMAT:
            raise ValueError(f"{path} is of format {number}, and this disttrain reads format {FORMAT}: prepare the folder again")
        if not sound:
            raise ValueError(f"{path} is damaged: prepare the folder again")
        for name, size in sizes.items():
            there = (folder / name).stat().st_size if (folder / name).is_file() else None
            if there != size:
                found = "is missing" if there is None else f"has {there} bytes"
                raise ValueError(f"{folder / name} {found}, and {size} were written: prepare the folder again")
        return manifest


@dataclass(frozen=True)
class PreparedTokens:
    """Tokens on disk, read as they are asked for."""

    folder: Path
    manifest: Manifest
    tokens: Tokens
    """A memory map ``[n]``."""
    ends: NDArray[np.int64]
    """One past the last token of each input file."""

    @classmethod
    def open(cls, folder: Path, verify: bool) -> PreparedTokens:
        """Map the tokens of a prepared folder; with ``verify``, read them through once and compare their SHA-256.

        Raises:
            ValueError: if the folder is not whole, with the file's name.
        """
        manifest = Manifest.read(folder)
        for name in (TOKENS, ENDS) if verify else (ENDS,):
            if sha256_of_file(folder / name) != manifest.sha256[name]:
                raise ValueError(f"{folder / name} is damaged: its SHA-256 is not the manifest's; prepare the folder again")
        ends = np.fromfile(folder / ENDS, dtype="<i8").astype(np.int64)
        if manifest.num_tokens != (ends[-1] if len(ends) else 0):
            raise ValueError(f"{folder / MANIFEST} is damaged: it does not fit {ENDS}")
        if manifest.num_tokens == 0:
            raise ValueError(f"{folder} holds no token: all its inputs were empty")
        return cls(folder, manifest, np.memmap(folder / TOKENS, dtype=manifest.dtype, mode="r"), ends)


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never half of it."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def sha256_of_file(path: Path, size: int | None = None, told: Callable[[int], Any] = lambda done: None) -> str:
    """Of a file's first ``size`` bytes (None: all), in hex.

    Args:
        path: of the file.
        size: how far.
        told: called with the bytes read so far.
    """
    return str(hash_of_file(path, size, told).hexdigest())


def hash_of_file(path: Path, size: int | None = None, told: Callable[[int], Any] = lambda done: None) -> Any:
    """The same as a running hash, which goes on where the file does."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while size is None or done < size:
            block = file.read(BLOCK_BYTES if size is None else min(BLOCK_BYTES, size - done))
            if not block:
                break
            digest.update(block)
            done += len(block)
            told(done)
    return digest


def _why_no_manifest(folder: Path) -> str:
    if not folder.is_dir():
        return f"no such folder: {folder} (looked in {Path.cwd()})"
    if (folder / PLAN).is_file():
        return f"{folder} is not finished: give the command `disttrain data prepare` that began it again"
    return f"{folder} holds no {MANIFEST}: make one by `disttrain data prepare FILES --output {folder}`"
