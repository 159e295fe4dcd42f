"""Tables with a column of text: Parquet files, and data sets that Hugging Face's `datasets` has saved. Extra ``hf``.

Both are read a few rows at a time; places are rows. Nothing is downloaded, and no code of a data set is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disttrain.component import UserError
from disttrain.data.preparation.inputs import Piece

ROWS = 256


class ParquetInput:
    """A Parquet file, of which each row's ``field`` is a document."""

    def __init__(self, name: str, path: Path, source: str, field: str) -> None:
        self.name, self.path, self.source, self._field = name, path, source, field

    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size

    def pieces(self, place: int) -> Iterator[Piece]:
        """A row each."""
        parquet = _import("pyarrow.parquet")
        try:
            file = parquet.ParquetFile(self.path)
        except Exception as error:  # the library's own errors have no base of their own
            raise ValueError(f"{self.path} is not a Parquet file: {error}") from None
        _check_field(self._field, file.schema_arrow.names, self.path)
        batches, first, rows = file.iter_batches(ROWS, columns=[self._field]), 0, file.metadata.num_rows
        for batch in batches:
            texts = batch.column(0).to_pylist() if first + len(batch) > place else []
            for row, text in enumerate(texts, first):
                if row >= place:
                    yield _piece(text, row, self.size() * (row + 1) // rows, f"{self.path}, row {row}", self._field)
            first += len(batch)


class SavedDatasetInput:
    """A data set, or a split of one, that ``save_to_disk`` has written."""

    def __init__(self, name: str, path: Path, source: str, field: str) -> None:
        self.name, self.path, self.source, self._field = name, path, source, field

    def size(self) -> int:
        """In bytes."""
        return sum(each.stat().st_size for each in self.path.glob("*.arrow"))

    def pieces(self, place: int) -> Iterator[Piece]:
        """A row each."""
        datasets = _import("datasets")
        try:
            table = datasets.load_from_disk(str(self.path), keep_in_memory=False)
        except Exception as error:  # whatever a damaged folder makes the library raise
            raise ValueError(f"{self.path} cannot be loaded as a saved data set: {error}") from None
        _check_field(self._field, table.column_names, self.path)
        size, rows = self.size(), len(table)
        for first in range(place - place % ROWS, rows, ROWS):
            for row, text in enumerate(table[first : first + ROWS][self._field], first):
                if row >= place:
                    yield _piece(text, row, size * (row + 1) // rows, f"{self.path}, row {row}", self._field)


class SavedDatasetInputs:
    """Recognises what ``save_to_disk`` of `datasets` writes: one data set, or a folder of splits."""

    ONE, SPLITS = "state.json", "dataset_dict.json"

    @classmethod
    def is_one(cls, path: Path) -> bool:
        """Whether ``path`` is such a folder."""
        return (path / cls.ONE).is_file() or (path / cls.SPLITS).is_file()

    @classmethod
    def at(cls, path: Path, field: str) -> list[SavedDatasetInput]:
        """The data set there.

        Raises:
            ValueError: if it has several splits.
        """
        if (path / cls.SPLITS).is_file():
            splits = sorted(each.name for each in path.iterdir() if (each / cls.ONE).is_file())
            if len(splits) != 1:
                raise ValueError(f"{path} holds the splits {', '.join(splits)}: name one of them, such as {path / splits[0]}")
            path = path / splits[0]
        return [SavedDatasetInput(str(path), path, str(path), field)]


def _piece(text: Any, row: int, progress: int, where: str, field: str) -> Piece:
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: {field!r} is a {type(text).__name__}, not a text")
    return Piece((text or "").encode("utf-8", "surrogatepass"), row + 1, bool(text), progress)


def _check_field(field: str, columns: list[str], path: Path) -> None:
    if field not in columns:
        raise ValueError(f"{path} has no column {field!r} (--field); it has {', '.join(columns)}")


def _import(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{module} is needed to read this ({error}): pip install 'disttrain[hf]'") from None
