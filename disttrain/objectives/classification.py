"""Classification: the mean cross-entropy, in nats per sample, and the share of samples whose class is found."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from disttrain.component import UserError
from disttrain.objectives.base import Model, Objective, ObjectiveConfig, objectives
from disttrain.task import ClassificationTask, Task


@objectives.register
class ClassificationConfig(ObjectiveConfig):
    """Mean cross-entropy of a sample's class."""

    name: Literal["classification"] = "classification"

    def build(self) -> Classification:
        """The loss function; it has no settings."""
        return Classification()


class Classification(Objective):
    """Cross-entropy of logits ``[batch, classes]`` against labels ``[batch]`` int64."""

    def __call__(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch, in nats; computed in fp32 whatever the logits' dtype.

        Raises:
            UserError: if the model returns something of another shape.
        """
        return F.cross_entropy(_logits(model, inputs, targets), targets)

    def evaluate(self, model: Model, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss, and as ``"accuracy"`` the share of samples whose largest logit is that of their class."""
        logits = _logits(model, inputs, targets)
        return {"loss": F.cross_entropy(logits, targets), "accuracy": (logits.argmax(-1) == targets).float().mean()}

    def check(self, task: Task) -> None:
        """Refuse tokens."""
        if not isinstance(task, ClassificationTask):
            raise UserError(
                "objective.name=classification needs samples with classes, and the data has sequences of tokens: "
                "use objective.name=next_token"
            )


def _logits(model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
    logits = model(inputs)
    if logits.ndim != 2 or logits.shape[:-1] != targets.shape:
        wanted = f"[{', '.join(map(str, targets.shape))}, classes]"
        raise UserError(f"objective.name=classification needs a model that returns logits {wanted}, got {list(logits.shape)}")
    return logits.float()
