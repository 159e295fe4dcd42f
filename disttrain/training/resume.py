"""Which checkpoint the workers continue from: the newest that is whole for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from disttrain.component import UserError
from disttrain.config import RunConfig, difference
from disttrain.recording.checkpoint import CheckpointStore, Snapshot
from disttrain.strategies.base import Strategy
from disttrain.training.meeting import exchange_facts
from disttrain.worlds import TorchWorld

PASSING = ("training.resume", "training.stop_after")
ESSENTIAL = (
    "model",
    "data",
    "partition",
    "objective",
    "optimizer.name",
    "optimizer.target",
    "optimizer.rank",
    "strategy.name",
    "strategy.period",
    "strategy.fragments",
    "strategy.delay",
    "strategy.group_size",
    "strategy.inner",
    "strategy.warmup_steps",
    "strategy.warmup_rounds",
    "strategy.compressor.name",
    "strategy.feedback.name",
    "launch.emulated_step_time",
)
"""What a run cannot change on the way, beside the seed and the batch size, by which it finds its place in the data."""


def refuse_other_run(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Compare the checkpoint's config with the present one; returns the other differences, which are the user's to make.

    Raises:
        UserError: naming everything essential that differs.
    """
    changed = difference(old, new)
    essential = (*ESSENTIAL, "training.seed", "training.batch_size")
    wrong = [each for each in changed if any(each[0] == key or each[0].startswith(f"{key}.") for key in essential)]
    renamed = {key.removesuffix("name") for key, _, _ in wrong if key.endswith(".name")}  # other settings follow from that
    wrong = [each for each in wrong if each[0].endswith(".name") or not each[0].startswith(tuple(renamed))]
    if wrong:
        listed = ", ".join(f"{key}: {was} there, {now} here" for key, was, now in wrong)
        raise UserError(f"the checkpoint is of another run ({listed}); nothing was changed. Start anew in another run.directory")
    return [each for each in changed if each[0].split(".")[0] not in ("run", "launch", "recording") and each[0] not in PASSING]


def keeps_its_own(snapshot: Snapshot, config: RunConfig, strategy: Strategy, num_workers: int) -> bool:
    """Whether a worker goes on with what was its own, rather than with its part of what all workers had."""
    if not strategy.replicated or not strategy.local:
        return True
    facts, settings = snapshot.shared_facts, config.strategy.model_dump(mode="json")
    kinds = {name.removeprefix("strategy.") for name in snapshot.local if name.startswith("strategy.")}
    same_feedback = facts["config"]["strategy"].get("feedback") == settings.get("feedback")
    return bool(facts["workers"] == num_workers and same_feedback and kinds == strategy.local.keys())


def what_workers_own(config: RunConfig, strategy: Strategy) -> str:
    """Why the number of workers cannot change, if there is a reason."""
    if not strategy.replicated:
        return f"strategy.name={config.strategy.name} each worker has a model"
    name = config.partition.name
    return "" if name == "none" else f"partition.name={name} each worker has samples"


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
