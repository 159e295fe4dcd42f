"""The seam of a model: tokens in, logits out, and what a token costs to train."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from disttrain.component import ComponentConfig, Registry, UserError

Size = Annotated[int, Field(gt=0)]


class ModelConfig(ComponentConfig):
    """Base of all models' configs."""

    def build(self, vocabulary_size: int, sequence_length: int) -> nn.Module:
        """The module, mapping tokens, int64 ``[batch, time]``, to logits ``[batch, time, vocabulary]``.

        Args:
            vocabulary_size: the data's; the module must know at least these tokens.
            sequence_length: the data's; the module must accept at least this many tokens at once.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def flops_per_token(self, module: nn.Module, sequence_length: int) -> float:
        """FLOPs to train on one token, forward and backward; here 2 + 4 for every trainable parameter."""
        return 6.0 * num_trainable(module)


models: Registry[ModelConfig] = Registry("model", default="plm")


def num_trainable(module: nn.Module) -> int:
    """How many parameters get gradients; a tied one counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def at_least(setting: str, own: int | None, needed: int) -> int:
    """A size that the model sets itself (``own``) or, where that is None, takes from the data.

    Raises:
        UserError: if the model's own size is too small for the data.
    """
    if own is None:
        return needed
    if own < needed:
        raise UserError(f"model.{setting}={own} is too small for the data, which needs at least {needed}")
    return own
