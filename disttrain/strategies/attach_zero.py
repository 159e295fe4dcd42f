"""ZeRO-1 inside a replica group: members that have the same gradients keep, and step, a part of the optimizer's state each.

"ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (arXiv 1910.02054), stage 1, by torch's
``ZeroRedundancyOptimizer``, which deals out whole parameters. What follows its step is ours: it would broadcast the parameters
one by one, past the world and uncounted.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer

from disttrain.optim.closure import refuse_closures
from disttrain.worlds.torch_world import TorchWorld


class ZeroOptimizer(ZeroRedundancyOptimizer):  # type: ignore[misc]
    """An optimizer over all parameters whose state is dealt out.

    Args:
        optimizer: of torch's kind, which treats every parameter by itself; it has not stepped, and is not used any more.
        lane: the members; nothing else may be under way on it in a step.

    Raises:
        ValueError: if the optimizer cannot be built again over some of its parameters, or needs a closure.

    Attributes:
        members_part: this member's, an ordinary optimizer.
    """

    def __init__(self, optimizer: Optimizer, lane: TorchWorld) -> None:
        refuse_closures(optimizer)
        self._lane, kind = lane, type(optimizer)
        accepted = signature(kind).parameters
        defaults = {key: value for key, value in optimizer.defaults.items() if key in accepted}
        groups = [{key: value for key, value in group.items() if key != "param_names"} for group in optimizer.param_groups]
        try:
            super().__init__(groups, kind, process_group=lane.group, **defaults)
        except TypeError as error:
            raise ValueError(
                f"strategy.inner=zero1 builds an optimizer for each member's parameters, and {kind.__name__} cannot be built "
                f"from its own settings ({error}); set strategy.inner=ddp"
            ) from error

    @property
    def members_part(self) -> Optimizer:
        """What has the state of this member's parameters."""
        part: Optimizer = self.optim
        return part

    @torch.no_grad()
    def _sync_params(self) -> None:
        """Bring every member's new parameters to all, by one gather."""
        everybodys = self._partition_parameters()  # type: ignore[attr-defined]
        parts: list[list[Tensor]] = [[p for group in groups for p in group["params"]] for groups in everybodys]
        width = max(sum(p.numel() for p in part) for part in parts)
        own = parts[self._lane.rank]
        row = next(p for part in parts for p in part).new_zeros(1, width)
        for place, p in zip(_split(row[0], own), own, strict=True):
            place.copy_(p)
        for rank, theirs in enumerate(self._lane.gather(row)[0]):
            if rank != self._lane.rank:
                for place, p in zip(_split(theirs, parts[rank]), parts[rank], strict=True):
                    p.copy_(place)


def _split(row: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """The places of some parameters in a row that begins with them."""
    sizes: list[Any] = [p.numel() for p in parameters]
    places = torch.split(row[: sum(sizes)], sizes) if sizes else ()
    return [place.view_as(p) for place, p in zip(places, parameters, strict=True)]
