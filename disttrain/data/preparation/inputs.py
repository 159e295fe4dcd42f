"""What can be prepared: an input is read piece by piece, from any place where a piece began, so that reading can be resumed.

Where pieces begin depends on the file alone. So the tokens do not depend on where an earlier attempt was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from disttrain.data.documents import find_documents

PIECE_BYTES = 2**17
"""A text is cut after the first line break from here on."""
LONGEST_BYTES = 2**22
"""A text without line breaks is cut here; a tokenizer would need 150 times as much memory for it."""
LONGEST_LINE = 2**26
"""The longest line of a .jsonl file."""


class Piece(NamedTuple):
    """A part of a document, or all of it."""

    text: bytes
    """In UTF-8, unless it is to be taken as bytes."""
    next: int
    """Where the piece after it begins."""
    ends: bool
    """Whether the document ends with it."""
    progress: int
    """Bytes of the file up to its end, exact or about."""


class Input(Protocol):
    """A file, or a folder that counts as one."""

    name: str
    """As the command line reaches it."""
    path: Path
    source: str
    """What its documents belong to."""

    def size(self) -> int:
        """In bytes."""
        ...

    def pieces(self, place: int) -> Iterator[Piece]:
        """Those from ``place`` on, which is 0 or some piece's ``next``.

        Raises:
            ValueError: if the file cannot be read, with its name and where.
        """
        ...


class TextInput:
    """A file that is one document."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size

    def pieces(self, place: int) -> Iterator[Piece]:
        """Cut after line breaks, which harms no word; places are bytes."""
        total = self.size()
        with self.path.open("rb") as file:
            file.seek(place)
            while place < total:
                text = file.read(PIECE_BYTES)
                if not text.endswith(b"\n"):
                    text += file.readline(LONGEST_BYTES - PIECE_BYTES)
                if not text:
                    raise ValueError(f"{self.path} ends at byte {place}, but had {total} when this began")
                if not text.endswith(b"\n") and place + len(text) < total:
                    kept = _whole_characters(text)
                    file.seek(kept - len(text), 1)
                    text = text[:kept]
                place += len(text)
                yield Piece(text, place, place >= total, place)


class JsonLinesInput:
    """A file of which each line is an object, and one of its fields a document.

    Args:
        name: as the command line reaches it.
        path: of the file.
        source: what its documents belong to.
        field: which field.
    """

    def __init__(self, name: str, path: Path, source: str, field: str) -> None:
        self.name, self.path, self.source, self._field = name, path, source, field

    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size

    def pieces(self, place: int) -> Iterator[Piece]:
        """A document each; places are bytes."""
        with self.path.open("rb") as file:
            file.seek(place)
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise ValueError(f"{self.path}, byte {place}: a line of more than {LONGEST_LINE} bytes")
                text = self._document(line, place)
                place += len(line)
                yield Piece(text, place, bool(text), place)

    def _document(self, line: bytes, place: int) -> bytes:
        """Empty for an empty line or document, which is left out."""
        if not line.strip():
            return b""
        try:
            text = json.loads(line)[self._field]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}, byte {place}: not a line of JSON: {error}") from None
        except (KeyError, TypeError, IndexError):
            raise ValueError(f"{self.path}, byte {place}: not an object with the field {self._field!r} (--field)") from None
        if not isinstance(text, str):
            raise ValueError(f"{self.path}, byte {place}: {self._field!r} is a {type(text).__name__}, not a text")
        return text.encode("utf-8", "surrogatepass")


def find_inputs(paths: Sequence[str], suffixes: Sequence[str], field: str) -> list[Input]:
    """The files that ``paths`` name, each once, folders' files sorted by name; a data set saved by `datasets` is one input.

    Args:
        paths: files, always taken, and folders to search; hidden files are left out.
        suffixes: of what is taken from folders, lower case.
        field: the column, or the field of a line, that holds the text.

    Raises:
        ValueError: if something is missing, or nothing is found.
    """
    from disttrain.data.preparation.columns import SavedDatasetInputs

    if missing := [path for path in paths if not Path(path).exists()]:
        raise ValueError(f"no such file or folder: {', '.join(missing)} (looked in {Path.cwd()})")
    found: dict[Path, Input] = {}
    for path in map(Path, paths):
        if SavedDatasetInputs.is_one(path):
            for each in SavedDatasetInputs.at(path, field):
                found.setdefault(each.path.resolve(), each)
        elif path.is_dir():
            for document in find_documents(path, suffixes, skip=lambda name: name.startswith(".")):
                source = f"{path}/{document.source}" if len(paths) > 1 else document.source
                made = _input(f"{path}/{document.name}", document.path, source, field)
                found.setdefault(document.path.resolve(), made)
        else:
            found.setdefault(path.resolve(), _input(str(path), path, str(path), field))
    if not found:
        raise ValueError(f"no file ends in {', '.join(suffixes)} (--suffixes) in {', '.join(paths)}")
    return list(found.values())


def _input(name: str, path: Path, source: str, field: str) -> Input:
    from disttrain.data.preparation.columns import ParquetInput

    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return JsonLinesInput(name, path, source, field)
        case ".parquet":
            return ParquetInput(name, path, source, field)
    return TextInput(name, path, source)


def _whole_characters(text: bytes) -> int:
    """How many bytes to keep so that no UTF-8 character is cut; all of them if this is not UTF-8 anyway."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:  # the first byte of a character: of one, two, three or four bytes
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return (len(text) - back if length > back else 0) or len(text)
    return len(text)
