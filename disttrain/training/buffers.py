"""What becomes of a module's buffers (BatchNorm's running statistics, say) when the workers' models become one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from disttrain.component import UserError
from disttrain.strategies.attach import training_mode
from disttrain.worlds.world import World

Policy = Literal["local", "average", "recalibrate"]
RECALIBRATION_BATCHES = 32


def choice_of(policy: Policy, module: nn.Module) -> str:
    """What will become of running statistics, to be said at the start; empty if the module has none."""
    if not (number := len(_norms(module))):
        return ""
    layers = "1 layer" if number == 1 else f"{number} layers"
    kept = f"running statistics of {layers}, each worker its own in training; exported (strategy.buffers={policy}) "
    how: dict[Policy, str] = {
        "local": "are worker 0's: average or recalibrate would be of all workers",
        "average": "is their mean",
        "recalibrate": f"are new ones, from {RECALIBRATION_BATCHES} batches at the end",
    }
    return kept + how[policy]


def _norms(module: nn.Module) -> list[_NormBase]:
    return [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]


@torch.no_grad()
def settle_buffers(
    policy: Policy,
    module: nn.Module,
    rows: Mapping[str, Tensor],
    world: World,
    batches: Iterator[Any] | None,
) -> None:
    """Give the final module its buffers.

    Args:
        policy: ``local`` leaves each process's module its first worker's; see ``StrategyConfig.buffers``.
        module: holds the final parameters.
        rows: the buffers, by name, of the workers that live here, ``[L, ...]``.
        world: all workers.
        batches: training inputs, for ``recalibrate``.

    Raises:
        UserError: if ``recalibrate`` is asked for without batches.
    """
    for name, buffer in module.named_buffers():
        average = policy == "average" and buffer.is_floating_point()  # a mean of counters or masks means nothing
        own = rows[name].reshape(len(rows[name]), -1)
        buffer.copy_((world.mean(own) if average else own)[0].view_as(buffer))
    if policy == "recalibrate":
        if batches is None:
            raise UserError("strategy.buffers=recalibrate needs training inputs: call finish(batches=...)")
        _recalibrate(module, batches)


@torch.no_grad()
def _recalibrate(module: nn.Module, batches: Iterator[Any]) -> None:
    """Forget all running statistics, and take the plain mean over a few training batches with the final weights.

    Only these layers train: what they will see has passed no dropout.
    """
    norms = _norms(module)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative mean
    with training_mode(module, False):
        for norm in norms:
            norm.train()
        for batch in islice(batches, RECALIBRATION_BATCHES):
            module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
