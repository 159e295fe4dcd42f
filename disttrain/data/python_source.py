"""The standard library of the Python that runs: some 8 MB of code that every machine has, byte by byte.

It needs no download and it is real text, which makes it the default. Other versions of Python have other sources: the
corpus's fingerprint tells, so workers should compare theirs before they start.

Its sources, by which a partition can divide it, are what one imports: a package such as asyncio, or a file such as ast.py.
"""

from __future__ import annotations

import platform
import sysconfig
from itertools import accumulate
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from disttrain.data.base import Corpus, TokenDataConfig, data_sources
from disttrain.data.documents import Document, find_documents, split_documents
from disttrain.data.encoders import ByteEncoder, encode_documents
from disttrain.data.token_corpus import corpus_of
from disttrain.quantities import Size
from disttrain.task import TokenTask

SKIPPED_FOLDERS = {
    *("site-packages", "dist-packages"),  # other people's
    *("test", "tests"),  # three quarters of all bytes, much of it data
    *("encodings", "pydoc_data"),  # generated tables
    *("distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"),  # absent from some distributions
}
SKIPPED_PREFIXES = ("_sysconfig", "config-", "sitecustomize", "usercustomize")  # differ between builds of one version


@data_sources.register
class PythonSourceConfig(TokenDataConfig):
    """The source code of Python's standard library, as bytes; whole files are kept apart for validation."""

    name: Literal["python_source"] = "python_source"
    has_sources: ClassVar[bool] = True

    validation_ratio: float = Field(0.05, gt=0, lt=1)
    """Share of the files to validate on, chosen by a hash of their names."""

    max_bytes: Annotated[Size, Field(gt=0)] | None = None
    """Take no more than this (such as 2MB), the first files by name, whole; null takes all."""

    def check(self) -> None:
        """Raise ValueError if this Python came without its sources, or max_bytes leaves too few."""
        split_documents(self._documents(), self.validation_ratio)

    def build(self, seed: int) -> Corpus:
        """Read the files; the same for every seed."""
        documents, encoder = self._documents(), ByteEncoder()
        train, validation = split_documents(documents, self.validation_ratio)
        return corpus_of(
            encode_documents(train, encoder),
            encode_documents(validation, encoder),
            task=TokenTask(encoder.vocabulary_size, self.sequence_length),
            unit=encoder.unit,
            description=f"the standard library of Python {platform.python_version()}, {len(documents)} files",
        )

    def _documents(self) -> list[Document]:
        folder = standard_library()
        documents = find_documents(folder, [".py"], skip=_is_skipped)
        if len(documents) < 2:
            raise ValueError(f"data.name=python_source: {folder} has no .py files; use data.name=text with files of yours")
        if self.max_bytes is None:
            return documents
        totals = accumulate(len(document.read()) for document in documents)
        taken = [document for document, total in zip(documents, totals, strict=True) if total <= self.max_bytes]
        if len(taken) < 2:
            raise ValueError(f"data.max_bytes={self.max_bytes} leaves {len(taken)} of {len(documents)} files; need 2")
        return taken


def standard_library() -> Path:
    """Where the running Python keeps its own modules."""
    return Path(sysconfig.get_path("stdlib"))


def _is_skipped(name: str) -> bool:
    return name in SKIPPED_FOLDERS or name.startswith(SKIPPED_PREFIXES)
