"""The section ``federated.ordering`` of a config."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from disttrain.component import ComponentConfig, Registry
from disttrain.federated.ordered import First, Order, Score
from disttrain.federated.pacing import PacingConfig


class OrderingConfig(ComponentConfig):
    """Base of all orders in which a client's samples come."""

    @property
    def expert_path(self) -> str | None:
        """Weights of a model that scores samples, if there is to be one."""
        return None

    def build(self, expert: Tensor | None = None) -> Order | None:
        """The order; None: there is none.

        Args:
            expert: ``[d]``, what was found at :attr:`expert_path`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build()")


orderings: Registry[OrderingConfig] = Registry("federated.ordering", default="none")


@orderings.register
class NoOrderingConfig(OrderingConfig):
    """Local steps draw from all the client has."""

    name: Literal["none"] = "none"

    def build(self, expert: Tensor | None = None) -> Order | None:
        """None."""
        return None


@orderings.register
class RandomOrderingConfig(OrderingConfig):
    """By chance, with a curriculum's pacing: what it would do if losses said nothing."""

    name: Literal["random"] = "random"
    pacing: PacingConfig = PacingConfig()
    """How soon all can be drawn."""

    def build(self, expert: Tensor | None = None) -> Order:
        """The order."""
        return Order("random", self.pacing)


@orderings.register
class CurriculumConfig(OrderingConfig):
    """Easy samples first (arXiv 2212.12712)."""

    name: Literal["curriculum"] = "curriculum"
    score: Score = "global"
    """Whose loss tells what is easy: the model just sent, the client's own of when it was last asked, or an expert's."""
    expert: str | None = Field(None, min_length=1)
    """For score=expert: a run's folder, or a safetensors file, of a model of the same kind."""
    pacing: PacingConfig = PacingConfig()
    """How soon all can be drawn."""

    @property
    def first(self) -> First:
        """Which come first."""
        return "easy"

    @property
    def expert_path(self) -> str | None:
        """The expert's weights."""
        return self.expert

    @model_validator(mode="after")
    def _has_an_expert(self) -> Self:
        if self.score == "expert" and self.expert is None:
            raise ValueError("score=expert needs expert: a run's folder, or a safetensors file, with weights of the same model")
        if self.score != "expert" and self.expert is not None:
            raise ValueError(f"expert={self.expert} would be ignored with score={self.score}: set score=expert")
        return self

    def build(self, expert: Tensor | None = None) -> Order:
        """The order."""
        return Order(self.first, self.pacing, self.score, expert)


@orderings.register
class AntiCurriculumConfig(CurriculumConfig):
    """Hard samples first: the reverse of a curriculum, with the same pacing (arXiv 2212.12712)."""

    name: Literal["anti_curriculum"] = "anti_curriculum"  # type: ignore[assignment]

    @property
    def first(self) -> First:
        """Which come first."""
        return "hard"
