"""Files as documents: found in an order, and split in a way, that depend on their names and not on the machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple


class Document(NamedTuple):
    """A file to learn from."""

    name: str
    """Its path below the folder it was found in, with forward slashes: the same on every machine."""
    path: Path
    """Where it is on this one."""
    source: str
    """What it belongs to: the folder, or if there is none the file, directly below the one that was searched."""

    def read(self) -> bytes:
        """Its bytes; a ValueError that names the file if it cannot be read."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read {self.path}: {error.strerror}") from error


def find_documents(folder: Path, suffixes: Collection[str], skip: Callable[[str], bool]) -> list[Document]:
    """The files below ``folder`` with one of ``suffixes`` (lower case; a file's own case is ignored), sorted by name.

    Args:
        folder: searched recursively; links to folders are not followed, so that a search ends.
        suffixes: ends of file names, such as ``.txt``.
        skip: tells of the bare name of a file or folder whether to leave it out, with all below it.

    Raises:
        ValueError: if a folder cannot be listed.
    """
    found = []
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not skip(name)]  # os.walk descends into what is left of this list
        for name in files:
            if name.lower().endswith(tuple(suffixes)) and not skip(name):
                path = Path(parent, name)
                parts = path.relative_to(folder).parts
                found.append(Document("/".join(parts), path, source=parts[0]))
    return sorted(found)


def split_documents(documents: list[Document], validation_ratio: float) -> tuple[list[Document], list[Document]]:
    """Whole documents, for training and for validation; both keep their order.

    A document's side depends on a hash of its name alone, so adding or removing others does not move it, unless a side
    would be left empty: then the document nearest to it changes over.

    Raises:
        ValueError: if there are fewer than two documents.
    """
    if len(documents) < 2:
        raise ValueError(f"need 2 files at least, one to train on and one to validate on, got {len(documents)}")
    ranked = sorted(documents, key=lambda document: (place(document.name), document))
    count = sum(place(document.name) < validation_ratio for document in documents)
    chosen = set(ranked[: min(max(count, 1), len(documents) - 1)])
    return [each for each in documents if each not in chosen], [each for each in documents if each in chosen]


def place(name: str) -> float:
    """A number in [0, 1] that stands for ``name``."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64


def _refuse(error: OSError) -> None:
    raise ValueError(f"cannot list {error.filename}: {error.strerror}") from error
