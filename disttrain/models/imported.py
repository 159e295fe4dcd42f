"""Any model that Python can import: a class or function, the user's own or another package's, by its path."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import nn

from disttrain.component import UserError
from disttrain.import_path import resolve
from disttrain.models.base import ModelConfig, models
from disttrain.task import ClassificationTask, Task, TokenTask

_ANY_TASK = asdict(TokenTask(1, 1)) | asdict(ClassificationTask((1,), 1))
"""Every size that some data tells; values to try a signature with, before the data is known."""


@models.register
class ImportedConfig(ModelConfig):
    """The module that ``target`` returns, called with ``arguments``.

    Parameters of the target named ``vocabulary_size`` and ``sequence_length`` (where the data is tokens) or ``input_shape``
    and ``num_classes`` (where its samples have classes) are filled in from the data unless ``arguments`` gives them.
    """

    name: Literal["import"] = "import"
    target: str
    """What makes the model: "package.module:callable", a class or a function."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Its arguments, by name."""

    @field_validator("target")
    @classmethod
    def _target_is_callable(cls, target: str) -> str:
        found = resolve(target)
        if not callable(found):
            raise ValueError(f"{target!r} is a {type(found).__name__}; it must be a class or function that makes a model")
        return target

    @model_validator(mode="after")
    def _arguments_are_accepted(self) -> Self:
        signature = _signature(resolve(self.target))
        if signature is not None:
            try:
                signature.bind(**_with_sizes(self.arguments, signature, _ANY_TASK))
            except TypeError as error:
                raise ValueError(f"arguments do not fit {self.target}: {error}; it takes {signature}") from error
        return self

    def build(self, task: Task) -> nn.Module:
        """The module, as the target made it.

        Raises:
            UserError: if the target needs a size that the data does not have, or made something else than a module.
        """
        make: Callable[..., Any] = resolve(self.target)
        signature, sizes = _signature(make), asdict(task)
        arguments = _with_sizes(self.arguments, signature, sizes)
        if missing := [name for name in _required(signature) if name in _ANY_TASK.keys() - arguments.keys()]:
            raise UserError(f"model.target={self.target} needs {', '.join(missing)}, and the data tells {', '.join(sizes)} only")
        module = make(**arguments)
        if not isinstance(module, nn.Module):
            raise UserError(f"model.target={self.target} returned a {type(module).__name__}, not a torch.nn.Module")
        return module


def _signature(make: Callable[..., Any]) -> inspect.Signature | None:
    """What ``make`` takes, or None for the few callables written in C that do not tell."""
    try:
        return inspect.signature(make)
    except ValueError:
        return None


def _required(signature: inspect.Signature | None) -> list[str]:
    """The parameters that must be given."""
    parameters = signature.parameters if signature is not None else {}
    return [name for name, parameter in parameters.items() if parameter.default is parameter.empty]


def _with_sizes(arguments: dict[str, Any], signature: inspect.Signature | None, sizes: dict[str, Any]) -> dict[str, Any]:
    """The arguments, and those of the data's ``sizes`` that the target names and the arguments do not give."""
    named = signature.parameters if signature is not None else {}
    return {name: size for name, size in sizes.items() if name in named} | arguments
