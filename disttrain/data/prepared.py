"""Token files that ``disttrain data prepare`` has made: read from disk as they are needed, one folder or a mixture of several."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from disttrain.data.base import Corpus, Dataset, TokenDataConfig, TokenDataset, data_sources
from disttrain.data.mixture import JoinedDataset, shares
from disttrain.data.prepared_files import TOKENS, Manifest, PreparedTokens
from disttrain.task import TokenTask

DEFAULT_VALIDATION_RATIO = 0.01


@data_sources.register
class PreparedConfig(TokenDataConfig):
    """Folders of prepared tokens; relative paths start at the working directory."""

    name: Literal["prepared"] = "prepared"
    has_sources: ClassVar[bool] = True

    folders: list[str] = Field(min_length=1)
    """What `disttrain data prepare --output` has made, all with the same tokenizer."""

    weights: list[Annotated[float, Field(gt=0)]] | None = None
    """How often samples of each folder are drawn, in any unit; null: every sample once per epoch."""

    validation: str | None = None
    """A prepared folder to validate on; null: the end of each of folders, which is not trained on."""

    validation_ratio: float = Field(DEFAULT_VALIDATION_RATIO, gt=0, lt=1)
    """Without validation: the share of each folder."""

    verify: bool = True
    """Read all files through at the start and compare their SHA-256; false: compare their sizes only."""

    @model_validator(mode="after")
    def _fits_together(self) -> PreparedConfig:
        if self.validation is not None and self.validation_ratio != DEFAULT_VALIDATION_RATIO:
            raise ValueError("set validation_ratio or validation, not both")
        if self.weights is not None and len(self.weights) != len(self.folders):
            raise ValueError(f"weights must be one for each of folders: {len(self.folders)}, got {len(self.weights)}")
        if self.weights is not None:
            shares(self.weights)
        return self

    def check(self) -> None:
        """Raise ValueError if a folder is missing, unfinished, of wrong size, or made with another tokenizer."""
        manifests = {folder: Manifest.read(Path(folder).expanduser()) for folder in self._all()}
        first, *others = manifests
        for folder in others:
            if (manifests[folder].tokenizer, manifests[folder].dtype) != (manifests[first].tokenizer, manifests[first].dtype):
                raise ValueError(f"{first} and {folder} were prepared with different tokenizers")

    def build(self, seed: int) -> Corpus:
        """Map the files; the same for every seed."""
        self.check()
        opened = {folder: PreparedTokens.open(Path(folder).expanduser(), self.verify) for folder in self._all()}
        sides = [self._sides(folder, opened[folder]) for folder in self.folders]
        manifest = opened[self.folders[0]].manifest
        validation: Dataset = JoinedDataset(tuple(end for _, end in sides if end is not None))
        if self.validation is not None:
            validation = self._windows(self.validation, opened[self.validation], slice(None), "the validation data")
        digests = [f"{opened[folder].manifest.sha256} {opened[folder].manifest.sources}" for folder in self._all()]
        facts = repr((digests, self.weights, self.validation is None and self.validation_ratio, self.sequence_length))
        return Corpus(
            train=self._join([train for train, _ in sides]),
            validation=validation,
            task=TokenTask(manifest.vocabulary_size, self.sequence_length),
            unit=manifest.unit,
            description=self._describe(opened),
            fingerprint=hashlib.sha256(facts.encode()).hexdigest(),
        )

    def _all(self) -> list[str]:
        return list(dict.fromkeys([*self.folders, *([self.validation] if self.validation is not None else [])]))

    def _sides(self, folder: str, prepared: PreparedTokens) -> tuple[TokenDataset, TokenDataset | None]:
        """What to train on, and what of it to validate on."""
        if self.validation is not None:
            return self._windows(folder, prepared, slice(None), "the training data"), None
        n = prepared.manifest.num_tokens
        cut = n - max(1, round(n * self.validation_ratio))
        held_out = self._windows(folder, prepared, slice(cut, n), "the validation data")
        return self._windows(folder, prepared, slice(0, cut), "the training data"), held_out

    def _windows(self, folder: str, prepared: PreparedTokens, part: slice, name: str) -> TokenDataset:
        """Sequences of a part of the tokens, each with the source in which its first one stands."""
        begin, end, _ = part.indices(prepared.manifest.num_tokens)
        starts = begin + np.arange(max(0, (end - begin - 1) // self.sequence_length)) * self.sequence_length
        names = tuple(dict.fromkeys(prepared.manifest.sources))
        number = {source: position for position, source in enumerate(names)}
        of_file = np.array([number[source] for source in prepared.manifest.sources], dtype=np.int64)
        sources = torch.from_numpy(of_file[np.searchsorted(prepared.ends, starts, side="right")])
        path = Path(folder) / TOKENS
        return TokenDataset(prepared.tokens[part], self.sequence_length, f"{name} in {path}", sources, names)

    def _join(self, parts: list[TokenDataset]) -> Dataset:
        """All parts as one; where there are several, the name of a folder is part of a source's."""
        if len(parts) == 1:
            return parts[0]
        names = [f"{folder}/{name}" for folder, part in zip(self.folders, parts, strict=True) for name in part.source_names]
        before = np.cumsum([0, *(len(part.source_names) for part in parts)]).tolist()
        sources = torch.cat(
            [part.sources + first for part, first in zip(parts, before, strict=False) if part.sources is not None]
        )
        weights = None if self.weights is None else tuple(weight / sum(self.weights) for weight in self.weights)
        return JoinedDataset(tuple(parts), sources, tuple(names), weights)

    def _describe(self, opened: dict[str, PreparedTokens]) -> str:
        def size(folder: str) -> str:
            manifest = opened[folder].manifest
            return f"{manifest.num_tokens:,} {manifest.unit}s in {folder}"

        weights = self.weights or [1.0] * len(self.folders)
        shared = [f"{weight / sum(weights):.1%} from " if self.weights else "" for weight in weights]
        parts = ", ".join(f"{share}{size(folder)}" for share, folder in zip(shared, self.folders, strict=True))
        held_out = size(self.validation) if self.validation is not None else f"the last {self.validation_ratio:.1%} of each"
        return f"{parts}; validation on {held_out}"
