"""From documents to tokens: their bytes as they are, or a trained tokenizer's ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from disttrain.data.base import Tokens, Unit
from disttrain.data.documents import Document

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
"""How tokenizers name the token that ends a document, in the order they are tried: tokenizer.json does not mark it."""

PIECE = 2**20
"""Characters given to a tokenizer at a time: it holds about 150 bytes for each (measured with a byte-level BPE)."""


class Encoder(Protocol):
    """Turns a document into tokens below ``vocabulary_size``."""

    unit: Unit
    vocabulary_size: int
    dtype: str
    """Of the tokens, as numpy writes it."""
    separator_tokens: list[int]

    def encode_texts(self, texts: list[bytes]) -> list[Tokens]:
        """The tokens of several texts, without separators, each ``[n]``; ValueError if one cannot be encoded."""
        ...

    def encode(self, document: bytes) -> Tokens:
        """Its tokens and those of the separator after it, ``[n]``; ValueError if it cannot be encoded."""
        ...


class ByteEncoder:
    """A token is a byte, so that any file can be learned and no text is lost.

    Args:
        separator: put after each document; by default a zero byte, which no text contains.
    """

    unit: Unit = "byte"
    vocabulary_size = 256
    dtype = "<u1"

    def __init__(self, separator: str | None = None) -> None:
        self.separator = b"\0" if separator is None else separator.encode()
        self.separator_tokens = list(self.separator)

    def encode_texts(self, texts: list[bytes]) -> list[Tokens]:
        """The bytes of each, uint8 ``[n]``."""
        return [np.frombuffer(text, dtype=np.uint8) for text in texts]

    def encode(self, document: bytes) -> Tokens:
        """The bytes, uint8 ``[n]``."""
        return np.frombuffer(document + self.separator, dtype=np.uint8)


class TokenizerEncoder:
    """A token is an id of a tokenizer of the library ``tokenizers``.

    Args:
        path: a ``tokenizer.json``.
        separator: text whose tokens are put after each document; by default the token that ends a text, if it has one.

    Raises:
        ValueError: if the file is no tokenizer's, or it knows no token, or none for the separator.
    """

    unit: Unit = "token"

    def __init__(self, path: Path, separator: str | None = None) -> None:
        self._tokenizer = load_tokenizer(path)
        # Not the number of entries: ids may have gaps.
        self.vocabulary_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._dtype = np.uint16 if self.vocabulary_size <= 2**16 else np.uint32
        self.dtype = "<u2" if self.vocabulary_size <= 2**16 else "<u4"
        self.separator = self.separator_tokens = self._end_of_text() if separator is None else self._ids(separator)
        if separator and not self.separator:
            raise ValueError(f"data.separator={separator!r} has no token in {path}")

    def encode_texts(self, texts: list[bytes]) -> list[Tokens]:
        """The ids of each, uint16 or uint32 ``[n]``, all texts in parallel; a long one in pieces, one after another."""
        decoded = [_decode(text) for text in texts]
        parts = [[text] if len(text) <= PIECE else list(_pieces(text)) for text in decoded]
        together = iter(self._ids_of_all([part[0] for part in parts if len(part) == 1]))
        ids = [[next(together)] if len(part) == 1 else [self._ids(piece) for piece in part] for part in parts]
        return [np.concatenate([np.array(each, dtype=self._dtype) for each in part]) for part in ids]

    def encode(self, document: bytes) -> Tokens:
        """The ids, uint16 or uint32 ``[n]``, of a document in UTF-8."""
        pieces = [np.array(self._ids(piece), dtype=self._dtype) for piece in _pieces(_decode(document))]
        return np.concatenate([*pieces, np.array(self.separator, dtype=self._dtype)])

    def _end_of_text(self) -> list[int]:
        known = [self._tokenizer.token_to_id(name) for name in END_OF_TEXT]
        return [token for token in known if token is not None][:1]

    def _ids(self, text: str) -> list[int]:
        return self._ids_of_all([text])[0]

    def _ids_of_all(self, texts: list[str]) -> list[list[int]]:
        try:
            return [each.ids for each in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:  # the library raises nothing narrower, as for a word that its vocabulary lacks
            raise ValueError(f"the tokenizer failed: {error}") from error


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}: convert it, or set data.tokenizer=bytes") from error


def load_tokenizer(path: Path) -> Any:
    """The ``tokenizers.Tokenizer`` of a ``tokenizer.json``, set to encode whole texts; ValueError if it is not one."""
    from tokenizers import Tokenizer  # a native library, which runs on bytes do without

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"data.tokenizer={path} is not a tokenizer.json: {error}") from error
    if not tokenizer.get_vocab(with_added_tokens=True):
        raise ValueError(f"data.tokenizer={path} has an empty vocabulary")
    tokenizer.no_truncation()  # files saved for inference often cut or pad all texts to one length
    tokenizer.no_padding()
    return tokenizer


class EncodedDocuments(NamedTuple):
    """Documents as one line of tokens."""

    tokens: Tokens
    """Of all documents in order ``[n]``, each followed by the separator."""
    ends: NDArray[np.int64]
    """One past the last token of each document, ``[documents]``."""
    sources: tuple[str, ...]
    """What each document belongs to, ``[documents]``."""


def encode_documents(documents: list[Document], encoder: Encoder) -> EncodedDocuments:
    """All documents, one after another; empty ones are left out.

    Raises:
        ValueError: if a document cannot be read or encoded, or all are empty.
    """
    parts = [(each, _encode(each, content, encoder)) for each in documents if (content := each.read())]
    if not parts:
        raise ValueError(f"all files are empty ({len(documents)} in all, the first is {documents[0].path})")
    return EncodedDocuments(
        tokens=np.concatenate([tokens for _, tokens in parts]),
        ends=np.cumsum([len(tokens) for _, tokens in parts], dtype=np.int64),
        sources=tuple(document.source for document, _ in parts),
    )


def _encode(document: Document, content: bytes, encoder: Encoder) -> Tokens:
    try:
        return encoder.encode(content)
    except ValueError as error:
        raise ValueError(f"cannot encode {document.path}: {error}") from error


def _pieces(text: str) -> Iterator[str]:
    """``text`` in parts of about `PIECE` characters, cut after line breaks, which harms no word.

    Only a break and the indentation after it may have been one token (measured: 5 tokens of 1.9 million differ).
    """
    start = 0
    while start < len(text):
        end = text.find("\n", start + PIECE) + 1 or len(text)
        yield text[start:end]
        start = end
