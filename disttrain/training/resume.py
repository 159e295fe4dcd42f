"""Which checkpoint the workers continue from: the newest that is whole for all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from disttrain.component import UserError
from disttrain.recording.checkpoint import CheckpointStore
from disttrain.training.meeting import exchange_facts
from disttrain.worlds import TorchWorld


def newest_agreed(store: CheckpointStore, world: TorchWorld, device: torch.device, report: Callable[[str], None]) -> int | None:
    """The step to continue from; None if there is no checkpoint at all. Each damaged one is reported.

    Raises:
        UserError: on every worker, if there are checkpoints and none is whole.
    """
    steps = store.steps()
    good: list[int] = []
    for step in steps:
        fault = store.fault(step)
        if fault is None:
            good.append(step)
        else:
            report(fault)
    everybody = exchange_facts(world, {"good": good[:10], "any": bool(steps)}, device)
    common = set(everybody[0]["good"]).intersection(*(facts["good"] for facts in everybody))
    if not common and any(facts["any"] for facts in everybody):
        raise UserError(f"training.resume=auto, but no checkpoint in {store.directory} is whole; nothing was changed. "
                        "Restore one, or start anew in another run.directory")  # fmt: skip
    return max(common, default=None)
