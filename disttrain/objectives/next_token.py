"""Next-token prediction: the mean cross-entropy, in nats per token (per byte, where tokens are bytes)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from disttrain.component import UserError
from disttrain.objectives.base import Model, Objective, ObjectiveConfig, objectives
from disttrain.task import Task, TokenTask


@objectives.register
class NextTokenConfig(ObjectiveConfig):
    """Mean cross-entropy of the next token."""

    name: Literal["next_token"] = "next_token"

    def build(self) -> NextToken:
        """The loss function; it has no settings."""
        return NextToken()


class NextToken(Objective):
    """Cross-entropy of logits ``[batch, time, vocabulary]`` against the tokens that followed, ``[batch, time]`` int64."""

    def __call__(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over batch and time, in nats; computed in fp32 whatever the logits' dtype.

        Raises:
            UserError: if the model returns something of another shape.
        """
        logits = model(inputs)
        if logits.shape[:-1] != targets.shape:
            wanted = f"[{', '.join(map(str, targets.shape))}, vocabulary]"
            raise UserError(f"objective.name=next_token needs a model that returns logits {wanted}, got {list(logits.shape)}")
        return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())

    def check(self, task: Task) -> None:
        """Refuse samples that are no sequences of tokens."""
        if not isinstance(task, TokenTask):
            raise UserError(
                f"objective.name=next_token predicts tokens, and the data has samples in {task.num_classes} classes: "
                "use objective.name=classification"
            )
