"""``disttrain data prepare``: text in, tokens out, piece by piece; interrupted and given again, it goes on to the same bytes."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from disttrain.component import UserError
from disttrain.data.encoders import ByteEncoder, Encoder, TokenizerEncoder
from disttrain.data.preparation.inputs import Input, Piece, find_inputs
from disttrain.data.preparation.tokenizer_folder import tokenizer_at
from disttrain.data.preparation.writing import Writer, forget_progress, is_finished
from disttrain.data.prepared_files import Manifest
from disttrain.data.text import BYTES
from disttrain.launch.shutdown import DONE, STOPPED
from disttrain.quantities import format_duration

BATCH_BYTES = 2**20
"""Encoded at a time: a tokenizer works on a batch's texts in parallel, and needs about 150 bytes for each of theirs."""
LINE_SECONDS = 10.0
DEFAULT_SUFFIXES = (".txt", ".md", ".rst", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class PrepareOptions:
    """What is asked for."""

    paths: tuple[str, ...]
    output: Path
    tokenizer: str = BYTES
    """"bytes", a tokenizer.json, or the folder of a tokenizer that Hugging Face's libraries have saved."""
    separator: str | None = None
    """Put after each document; None: a zero byte, or the token that ends a text."""
    suffixes: tuple[str, ...] = DEFAULT_SUFFIXES
    field: str = "text"


def prepare(options: PrepareOptions, stop: Callable[[], bool]) -> int:
    """Prepare a folder of tokens; returns an exit code.

    Args:
        options: what is asked for.
        stop: whether somebody wants it to stop: it saves how far it is.

    Raises:
        UserError: if an input, the tokenizer or the output cannot be used.
    """
    try:
        inputs = find_inputs(options.paths, options.suffixes, options.field)
        encoder, tokenizer = _encoder(options)
        plan = _plan(options, inputs, encoder, tokenizer)
        if is_finished(options.output):
            return _already_done(options.output, tokenizer, inputs)
        with Writer(options.output, plan, encoder.dtype) as writer:
            if writer.progress.input_bytes:
                print(f"continuing after {_bytes(writer.progress.input_bytes)}", flush=True)
            if not _run(inputs, encoder, writer, stop):
                print("stopped; the same command goes on from here", flush=True)
                return STOPPED
            _finish(options.output, inputs, encoder, tokenizer, writer)
        forget_progress(options.output)
    except ValueError as error:
        raise UserError(str(error)) from error
    return DONE


def _run(inputs: list[Input], encoder: Encoder, writer: Writer, stop: Callable[[], bool]) -> bool:
    """Encode everything that is left; whether it came to the end."""
    sizes = [each.size() for each in inputs]
    done = sum(sizes[: writer.progress.file])
    report = _Report(sum(sizes), writer.progress.input_bytes)
    for number in range(writer.progress.file, len(inputs)):
        for batch in _batches(inputs[number].pieces(writer.progress.place)):
            if stop():
                return False
            tokens = _encode(encoder, batch, inputs[number])
            writer.write(tokens, batch[-1].next, done + batch[-1].progress)
            report.tell(writer.progress.input_bytes, writer.progress.num_tokens)
        done += sizes[number]
        writer.end_file(done)
    report.end(writer.progress.num_tokens)
    return True


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(encoder: Encoder, batch: list[Piece], source: Input) -> list[np.ndarray]:
    """The tokens of each piece, and of the separator after each document."""
    try:
        encoded = encoder.encode_texts([piece.text for piece in batch])
    except ValueError as error:
        raise ValueError(f"cannot encode {source.path}, at or after {batch[0].next}: {error}") from error
    separator = np.array(encoder.separator_tokens, dtype=encoder.dtype)
    return [part for piece, tokens in zip(batch, encoded, strict=True) for part in (tokens, separator)[: 1 + piece.ends]]


def _finish(output: Path, inputs: list[Input], encoder: Encoder, tokenizer: str, writer: Writer) -> None:
    progress, hashes = writer.progress, writer.finish()
    if not progress.num_tokens:
        raise ValueError(f"all files are empty ({len(inputs)} in all, the first is {inputs[0].path})")
    Manifest(
        encoder.dtype, progress.num_tokens, encoder.unit, encoder.vocabulary_size, tokenizer, hashes,
        tuple(each.source for each in inputs), progress.input_bytes,
    ).write(output)  # fmt: skip
    print(f"{output}: {progress.num_tokens:,} {encoder.unit}s of {len(inputs)} files", flush=True)


def _encoder(options: PrepareOptions) -> tuple[Encoder, str]:
    """The encoder, and the digest of its tokenizer's file."""
    if options.tokenizer == BYTES:
        return ByteEncoder(options.separator), BYTES
    path, end = tokenizer_at(Path(options.tokenizer))
    separator = options.separator if options.separator is not None else end
    return TokenizerEncoder(path, separator), hashlib.sha256(path.read_bytes()).hexdigest()


def _plan(options: PrepareOptions, inputs: list[Input], encoder: Encoder, tokenizer: str) -> dict[str, object]:
    facts = [[each.name, each.source, each.size(), each.path.stat().st_mtime_ns] for each in inputs]
    plan = {"tokenizer": tokenizer, "separator": list(encoder.separator_tokens), "field": options.field, "inputs": facts}
    return dict(json.loads(json.dumps(plan)))


def _already_done(output: Path, tokenizer: str, inputs: list[Input]) -> int:
    manifest = Manifest.read(output)
    same = (manifest.tokenizer, manifest.sources) == (tokenizer, tuple(each.source for each in inputs))
    if not same or manifest.input_bytes != sum(each.size() for each in inputs):
        raise UserError(f"{output} holds other prepared data: name another --output, or remove it")
    print(f"{output} is finished already: {manifest.num_tokens:,} {manifest.unit}s", flush=True)
    return DONE


class _Report:
    """Says now and then how far it is: one line that is written over on a terminal, a line in :data:`LINE_SECONDS` elsewhere."""

    def __init__(self, total: int, before: int) -> None:
        self._total, self._before, self._started = total, before, time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._told = self._started

    def tell(self, done: int, num_tokens: int) -> None:
        now = time.monotonic()
        if now - self._told < (0.2 if self._terminal else LINE_SECONDS):
            return
        self._told = now
        speed = (done - self._before) / (now - self._started)
        left = format_duration(round((self._total - done) / speed)) if speed else "?"
        share = f"{done / self._total:6.1%}  {_bytes(done)} of {_bytes(self._total)}"
        line = f"{share}  {_bytes(speed)}/s  {num_tokens:,} tokens  {left} left"
        print(f"\r{line}\033[K" if self._terminal else line, end="" if self._terminal else "\n", flush=True)

    def end(self, num_tokens: int) -> None:
        seconds = time.monotonic() - self._started
        line = f"100.0%  {_bytes(self._total)} in {seconds:.1f} s  {_bytes((self._total - self._before) / max(seconds, 1e-9))}/s"
        print(f"\r{line}\033[K" if self._terminal else line, flush=True)


def _bytes(amount: float) -> str:
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"
