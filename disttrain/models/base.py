"""The seam of a model: a task's samples in, logits out, and what a sample costs to train."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from disttrain.component import ComponentConfig, Registry, UserError
from disttrain.task import ClassificationTask, Task, TokenTask

Size = Annotated[int, Field(gt=0)]


class ModelConfig(ComponentConfig):
    """Base of all models' configs."""

    def build(self, task: Task) -> nn.Module:
        """The module, mapping samples to logits.

        Args:
            task: the data's. Of a `TokenTask`, int64 ``[batch, time]`` becomes ``[batch, time, vocabulary]``: the module must
                know at least these tokens and accept at least this many at once. Of a `ClassificationTask`, float32
                ``[batch, *input_shape]`` becomes ``[batch, num_classes]``.

        Raises:
            UserError: if the model cannot do this task.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def flops_per_token(self, module: nn.Module, task: Task) -> float:
        """FLOPs to train on one token (one sample, of a `ClassificationTask`), forward and backward.

        Here 2 + 4 for every trainable parameter.
        """
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


def token_task(model: str, task: Task) -> TokenTask:
    """The task, for a model that reads tokens; a UserError, naming ``model``, if it is another one."""
    if isinstance(task, TokenTask):
        return task
    shape = ", ".join(map(str, task.input_shape))
    raise UserError(
        f"model.name={model} reads tokens, and the data has samples of shape [{shape}] in {task.num_classes} classes: "
        "use model.name=mlp or cnn"
    )


def classification_task(model: str, task: Task) -> ClassificationTask:
    """The task, for a model that reads samples of one shape; a UserError, naming ``model``, if it is another one."""
    if isinstance(task, ClassificationTask):
        return task
    raise UserError(
        f"model.name={model} classifies samples of numbers, and the data has sequences of {task.sequence_length} tokens: "
        "use model.name=plm, gpt or huggingface"
    )
