"""What a run trains, put together: strategy, schedule and clipping around a module and its optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from disttrain.component import UserError
from disttrain.config import RunConfig
from disttrain.optim import MatrixOptimizer
from disttrain.optim.matrix_config import MatrixOptimizerConfig
from disttrain.optim.schedules import ConstantConfig
from disttrain.strategies.attach import PreparedModule, StrategyOptimizer, attach
from disttrain.strategies.base import Strategy
from disttrain.strategies.local_updates import LocalUpdates, LocalUpdatesConfig
from disttrain.worlds import TorchWorld


def assemble(
    config: RunConfig, strategy: Strategy, world: TorchWorld, module: nn.Module, optimizer: Optimizer | None
) -> tuple[PreparedModule, StrategyOptimizer]:
    """Begin the strategy; what comes back is what the training loop calls.

    Args:
        config: of the run.
        strategy: built from it.
        world: all workers.
        module: the user's, on its device.
        optimizer: the user's own; None: the config's.

    Raises:
        UserError: if these do not fit together.
    """
    training = config.training
    try:
        if isinstance(strategy, LocalUpdates) and strategy.sharded:
            from disttrain.strategies.attach_fsdp import attach_sharded  # half a second, for those who shard

            refuse_to_shard(config, optimizer)
            model: PreparedModule = attach_sharded(module, strategy, world, training.seed)
            optimizer = config.optimizer.build(module)
        else:
            ours, optimizer = optimizer is None, optimizer or config.optimizer.build(module)
            model = attach(module, strategy, world, training.seed)
            optimizer = share(config, strategy, world, optimizer, ours)
        return model, StrategyOptimizer(optimizer, strategy, _multiplier(config), training.clip_norm, model)
    except ValueError as error:
        raise UserError(str(error)) from error


def share(config: RunConfig, strategy: Strategy, world: TorchWorld, optimizer: Optimizer, ours: bool) -> Optimizer:
    """Let workers that would step alike divide the work, if that is wanted; returns the optimizer that does."""
    if isinstance(config.strategy, LocalUpdatesConfig) and config.strategy.inner == "zero1":
        assert isinstance(strategy, LocalUpdates)
        return deal_out(config, strategy, optimizer, ours)
    if ours:
        config.optimizer.share(optimizer, world, strategy.replicated)
    return optimizer


def deal_out(config: RunConfig, strategy: LocalUpdates, optimizer: Optimizer, ours: bool) -> Optimizer:
    """Shard the optimizer's state inside the replica group: by matrices if it knows how, else by parameters.

    Raises:
        ValueError: for an optimizer that cannot be dealt out.
    """
    assert strategy.groups is not None
    lane = strategy.groups.own_steps
    if isinstance(optimizer, MatrixOptimizer):
        optimizer.shard(lane, getattr(config.optimizer, "sharding", None) or "float32")
        return optimizer
    if not ours:
        raise ValueError(
            f"strategy.inner=zero1 builds an optimizer for each member's parameters, and the {type(optimizer).__name__} that "
            "prepare() was given is built already: choose one by optimizer.name, or set strategy.inner=ddp"
        )
    from disttrain.strategies.attach_zero import ZeroOptimizer  # half a second, for those who deal out

    assert isinstance(lane, TorchWorld)
    return ZeroOptimizer(optimizer, lane)


def refuse_to_shard(config: RunConfig, optimizer: Optimizer | None) -> None:
    """Raise ValueError for what does not work on shards of parameters."""
    if optimizer is not None:
        raise ValueError(
            f"strategy.inner=fsdp replaces the module's parameters by shards, and the {type(optimizer).__name__} that prepare() "
            "was given holds the old ones: choose one by optimizer.name, or set strategy.inner=zero1 or ddp"
        )
    if isinstance(config.optimizer, MatrixOptimizerConfig):
        raise ValueError(
            f"optimizer.name={config.optimizer.name} steps whole matrices, and strategy.inner=fsdp gives a worker some rows: "
            "take adamw or sgd, or set strategy.inner=zero1"
        )
    if config.launch.emulated_step_time is not None:
        raise ValueError("strategy.inner=fsdp works inside the model, which launch.emulated_step_time does not run")


def _multiplier(config: RunConfig) -> Any:
    schedule, total = config.schedule, config.training.steps
    if schedule == ConstantConfig():
        return None  # a user's own scheduler may be at work on the same groups
    return lambda update: schedule.multiplier(update, total)
