"""Text files of one's own, as bytes or through a trained tokenizer.

Nothing is cached or downloaded: each worker reads and encodes all files when it starts. The text's sources, by which a
partition can divide it, are the folders and files directly below each of the paths; a file among the paths is one itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from disttrain.data.base import Corpus, TokenDataConfig, data_sources
from disttrain.data.documents import Document, find_documents, split_documents
from disttrain.data.encoders import ByteEncoder, EncodedDocuments, Encoder, TokenizerEncoder, encode_documents
from disttrain.data.token_corpus import corpus_of
from disttrain.task import TokenTask

BYTES = "bytes"
DEFAULT_VALIDATION_RATIO = 0.05

Suffix = Annotated[str, Field(pattern=r"^\.")]


@data_sources.register
class TextConfig(TokenDataConfig):
    """Files and folders of text; relative paths start at the working directory."""

    name: Literal["text"] = "text"
    has_sources: ClassVar[bool] = True

    paths: list[str] = Field(min_length=1)
    """Files, and folders to search; hidden files and folders below these are left out."""

    suffixes: list[Suffix] = Field(default=[".md", ".rst", ".txt"], min_length=1)
    """What is taken from a folder; a file named in paths is always taken."""

    tokenizer: str = BYTES
    """Either "bytes" or the path of a tokenizer.json of the library `tokenizers`."""

    separator: str | None = None
    """Put after each document; null: a zero byte, or the token with which the tokenizer ends a text, if it has one."""

    validation_paths: list[str] = Field(default=[])
    """What to validate on; it is never trained on, even if it lies below one of paths. Empty: a share of paths."""

    validation_ratio: float = Field(DEFAULT_VALIDATION_RATIO, gt=0, lt=1)
    """Without validation_paths: the share of the files, chosen by a hash of their names; of a single file, its end."""

    @model_validator(mode="after")
    def _refuse_a_ratio_that_would_be_ignored(self) -> TextConfig:
        if self.validation_paths and self.validation_ratio != DEFAULT_VALIDATION_RATIO:
            raise ValueError("set validation_ratio or validation_paths, not both")
        return self

    def check(self) -> None:
        """Raise ValueError if a path is missing, holds no such files, or the tokenizer's file is missing."""
        self._documents()
        self._tokenizer_path()

    def build(self, seed: int) -> Corpus:
        """Read and encode the files; the same for every seed."""
        training, validation = self._documents()
        encoder = self._encoder()
        train, validate = self._encode(encoder, training, validation)
        return corpus_of(
            train,
            validate,
            task=TokenTask(encoder.vocabulary_size, self.sequence_length),
            unit=encoder.unit,
            description=self._describe([*training, *validation]),
        )

    def _documents(self) -> tuple[list[Document], list[Document]]:
        """What to train on, and what to validate on: nothing if a single file is to be cut in two."""
        validation = self._find("validation_paths", self.validation_paths)
        held_out = {each.path.resolve() for each in validation}
        training = [each for each in self._find("paths", self.paths) if each.path.resolve() not in held_out]
        if not training:
            raise ValueError("data.paths: nothing is left to train on, for all its files are in data.validation_paths")
        if validation or len(training) == 1:
            return training, validation
        return split_documents(training, self.validation_ratio)

    def _find(self, key: str, paths: list[str]) -> list[Document]:
        """The files that ``paths`` name, each once, in the order of ``paths``."""
        places = [Path(path).expanduser() for path in paths]
        if missing := [str(place) for place in places if not place.exists()]:
            raise ValueError(f"data.{key}: no such file or folder: {', '.join(missing)} (looked in {Path.cwd()})")
        unique: dict[Path, Document] = {}
        for place in places:
            for document in _documents_at(place, self.suffixes):
                several = len(places) > 1 and place.is_dir()  # two folders may each have a part of one name
                source = f"{place}/{document.source}" if several else document.source
                unique.setdefault(document.path.resolve(), document._replace(source=source))
        if paths and not unique:
            raise ValueError(f"data.{key}: no file ends in {', '.join(self.suffixes)} (data.suffixes) in {paths}")
        return list(unique.values())

    def _tokenizer_path(self) -> Path | None:
        """The tokenizer's file; None where tokens are bytes."""
        if self.tokenizer == BYTES:
            return None
        path = Path(self.tokenizer).expanduser()
        if not path.is_file():
            allowed = f'"{BYTES}" or the path of a tokenizer.json; nothing is downloaded'
            raise ValueError(f"data.tokenizer={self.tokenizer}: no such file (allowed: {allowed})")
        return path

    def _encoder(self) -> Encoder:
        path = self._tokenizer_path()
        return ByteEncoder(self.separator) if path is None else TokenizerEncoder(path, self.separator)

    def _encode(
        self, encoder: Encoder, training: list[Document], validation: list[Document]
    ) -> tuple[EncodedDocuments, EncodedDocuments]:
        train = encode_documents(training, encoder)
        if validation:
            return train, encode_documents(validation, encoder)
        tokens = train.tokens
        cut = len(tokens) - max(1, round(len(tokens) * self.validation_ratio))
        return train._replace(tokens=tokens[:cut]), train._replace(tokens=tokens[cut:])

    def _describe(self, documents: list[Document]) -> str:
        num_bytes = sum(each.path.stat().st_size for each in documents)
        encoding = "" if self.tokenizer == BYTES else f", encoded by {self.tokenizer}"
        files = "1 file" if len(documents) == 1 else f"{len(documents)} files"
        return f"{files} of {num_bytes:,} bytes in {', '.join(self.paths)}{encoding}"


def _documents_at(place: Path, suffixes: list[str]) -> list[Document]:
    if place.is_dir():
        return find_documents(place, [suffix.lower() for suffix in suffixes], skip=lambda name: name.startswith("."))
    return [Document(place.name, place, source=str(place))]
