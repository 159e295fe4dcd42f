"""The seam of an optimizer: a module in, a ``torch.optim.Optimizer`` over its trainable parameters out."""

from __future__ import annotations

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from disttrain.component import ComponentConfig, Registry
from disttrain.optim.groups import ParameterGroup, Role, build_param_groups
from disttrain.worlds.world import World


class OptimizerConfig(ComponentConfig):
    """Base of all optimizers' configs; a subclass gives ``lr`` its default and defines ``build``."""

    lr: float = Field(gt=0)
    """The peak learning rate, which the schedule multiplies."""
    roles: dict[str, Role] = Field(default_factory=dict)
    """Corrections to how parameters are grouped: a name or pattern, such as "router.*.weight", and its role."""

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """The trainable parameters by role; see ``build_param_groups``."""
        return build_param_groups(module, self.roles)

    def build(self, module: nn.Module) -> Optimizer:
        """An optimizer over every trainable parameter of ``module``.

        Raises:
            UserError: if the module has none, or the settings do not fit it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def share(self, optimizer: Optimizer, world: World, replicated: bool) -> None:
        """Called once, when the workers have met; here nothing is shared.

        Args:
            optimizer: from :meth:`build`.
            world: all workers.
            replicated: whether their gradients, and so their steps, are the same.
        """


optimizers: Registry[OptimizerConfig] = Registry("optimizer", default="adamw")
