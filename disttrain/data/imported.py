"""Data that the user's own code loads, by its import path."""

from __future__ import annotations

import inspect
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from disttrain.component import UserError
from disttrain.data.base import Corpus, DataConfig, data_sources
from disttrain.import_path import resolve


@data_sources.register
class ImportedDataConfig(DataConfig):
    """The `disttrain.data.Corpus` that ``target`` returns, called with ``arguments``; and with the run's seed, if it takes a
    ``seed``."""

    name: Literal["import"] = "import"
    target: str
    """What loads the data: "package.module:callable"."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Its arguments, by name."""

    @field_validator("target")
    @classmethod
    def _target_is_callable(cls, target: str) -> str:
        found = resolve(target)
        if not callable(found):
            raise ValueError(f"{target!r} is a {type(found).__name__}; it must be a function that returns a Corpus")
        return target

    @model_validator(mode="after")
    def _arguments_are_accepted(self) -> Self:
        signature = inspect.signature(resolve(self.target))
        try:
            signature.bind(**self._given(signature, 0))
        except TypeError as error:
            raise ValueError(f"arguments do not fit {self.target}: {error}; it takes {signature}") from error
        return self

    def build(self, seed: int) -> Corpus:
        """What the target returns.

        Raises:
            UserError: if that is no `Corpus`.
        """
        load = resolve(self.target)
        corpus = load(**self._given(inspect.signature(load), seed))
        if not isinstance(corpus, Corpus):
            raise UserError(f"data.target={self.target} returned a {type(corpus).__name__}, not a disttrain.data.Corpus")
        return corpus

    def _given(self, signature: inspect.Signature, seed: int) -> dict[str, Any]:
        return ({"seed": seed} if "seed" in signature.parameters else {}) | self.arguments
