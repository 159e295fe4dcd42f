"""From encoded documents to a corpus of token sequences that know which document they start in."""

from __future__ import annotations

import numpy as np
import torch

from disttrain.data.base import Corpus, TokenDataset, Unit, fingerprint
from disttrain.data.encoders import EncodedDocuments
from disttrain.task import TokenTask


def corpus_of(train: EncodedDocuments, validation: EncodedDocuments, *, task: TokenTask, unit: Unit, description: str) -> Corpus:
    """The corpus of two sides' documents; their sizes are added to ``description``.

    Raises:
        ValueError: if one of them is too short for a sequence.
    """
    training = token_dataset(train, task.sequence_length, "the training data")
    assert training.sources is not None
    return Corpus(
        train=training,
        validation=token_dataset(validation, task.sequence_length, "the validation data"),
        task=task,
        unit=unit,
        description=f"{description}: {train.tokens.size:,} {unit}s to train on, {validation.tokens.size:,} to validate on",
        fingerprint=fingerprint(train.tokens, validation.tokens, training.sources.numpy()),
    )


def token_dataset(documents: EncodedDocuments, sequence_length: int, name: str) -> TokenDataset:
    """Sequences across all documents; each has the source of the document in which its first input token stands.

    Sources are numbered in the order in which they appear, so that no number depends on the machine.

    Raises:
        ValueError: if there are too few tokens for a sequence.
    """
    names = tuple(dict.fromkeys(documents.sources))
    number = {source: position for position, source in enumerate(names)}
    of_document = np.array([number[source] for source in documents.sources], dtype=np.int64)
    starts = np.arange((len(documents.tokens) - 1) // sequence_length) * sequence_length
    sources = of_document[np.searchsorted(documents.ends, starts, side="right")]
    return TokenDataset(documents.tokens, sequence_length, name, torch.from_numpy(sources), names)
