"""Any ``torch.optim.Optimizer`` that Python can import, torch's own or another package's, by its path."""

from __future__ import annotations

import difflib
import inspect
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import nn
from torch.optim import Optimizer

from disttrain.import_path import resolve
from disttrain.optim.base import OptimizerConfig, optimizers
from disttrain.optim.groups import Decay


@optimizers.register
class ImportedConfig(OptimizerConfig):
    """The optimizer class at ``target``, called with the parameters, ``lr`` and ``arguments``."""

    name: Literal["import"] = "import"
    target: str
    """Where the class is: "package.module:Class", such as "torch.optim:Adafactor"."""
    lr: float = Field(1e-3, gt=0)
    """The peak learning rate, which the schedule multiplies."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """The constructor's other arguments, by name."""
    decay: Decay = "matrices"
    """What decays, if the class takes weight_decay: matrices, weights (embeddings too) or all."""

    @field_validator("target")
    @classmethod
    def _target_is_an_optimizer(cls, target: str) -> str:
        found = resolve(target)
        if not (isinstance(found, type) and issubclass(found, Optimizer)):
            raise ValueError(f"{target!r} is {_described(found)}, not a subclass of torch.optim.Optimizer")
        return target

    @model_validator(mode="after")
    def _arguments_are_accepted(self) -> Self:
        if "lr" in self.arguments:
            raise ValueError("the learning rate is set by optimizer.lr, not in arguments")
        accepted = _parameters(self.target)
        if any(each.kind is each.VAR_KEYWORD for each in accepted.values()):
            return self  # **kwargs: only the class itself can tell
        for argument in ["lr", *self.arguments]:
            if argument not in accepted:
                raise ValueError(f"{self.target} has no argument {argument!r}{_nearest(argument, list(accepted))}")
        return self

    def build(self, module: nn.Module) -> Optimizer:
        """One torch group per role if the class takes weight_decay, else one for all."""
        groups = self.groups(module)
        if "weight_decay" in _parameters(self.target) or "weight_decay" in self.arguments:
            spared: dict[str, float] = {"weight_decay": 0.0}
            parameters = [group.for_torch(**({} if group.decays(self.decay) else spared)) for group in groups]
        else:
            parameters = [{"params": [pair for group in groups for pair in group.for_torch()["params"]]}]
        optimizer: Optimizer = resolve(self.target)(parameters, lr=self.lr, **self.arguments)
        return optimizer


def _parameters(target: str) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name, without the first, which takes the module's parameters."""
    return dict(list(inspect.signature(resolve(target)).parameters.items())[1:])


def _described(found: object) -> str:
    return f"the class {found.__qualname__}" if isinstance(found, type) else f"a {type(found).__name__}"


def _nearest(argument: str, accepted: list[str]) -> str:
    near = difflib.get_close_matches(argument, accepted, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{hint} It takes {', '.join(accepted)}" if near else f"; it takes {', '.join(accepted)}"
