"""Optimizers that want to call the model themselves."""

from inspect import Parameter, signature

from torch.optim import Optimizer


def refuse_closures(optimizer: Optimizer) -> None:
    """Raise ValueError if ``step`` cannot be called without a closure, as LBFGS's."""
    closure = signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is Parameter.empty:
        raise ValueError(f"{type(optimizer).__name__} calls the model several times per step, which no strategy can follow")
