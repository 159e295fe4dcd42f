"""Next-token prediction: the mean cross-entropy, in nats per token (per byte, where tokens are bytes)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from disttrain.objectives.base import ObjectiveConfig, objectives


@objectives.register
class NextTokenConfig(ObjectiveConfig):
    """Mean cross-entropy of the next token."""

    name: Literal["next_token"] = "next_token"

    def build(self) -> NextToken:
        """The loss function; it has no settings."""
        return NextToken()


class NextToken:
    """Cross-entropy of logits ``[batch, time, vocabulary]`` against the tokens that followed, ``[batch, time]`` int64."""

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over batch and time, in nats; computed in fp32 whatever the logits' dtype."""
        logits = model(inputs)
        return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
