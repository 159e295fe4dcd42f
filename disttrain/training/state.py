"""Everything that has to survive for a run to go on as if it had never stopped.

The live parameters and the optimizer's state are equal on all workers under a replicated strategy, and saved once; else they
are each worker's own. Buffers and generators are always each worker's own. A worker that the saved run did not have goes on
with another one's buffers and its own fresh generators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from disttrain.component import UserError
from disttrain.optim import MatrixOptimizer
from disttrain.recording.checkpoint import Snapshot
from disttrain.strategies.attach import StepCounts, StrategyOptimizer
from disttrain.strategies.base import Strategy
from disttrain.strategies.shards import as_shard, is_sharded, shard_of
from disttrain.training.seeds import generator_state, restore_generators

Tensors = dict[str, Tensor]


class TrainingState:
    """Collects a worker's state into a :class:`Snapshot`, and puts it back.

    Args:
        module: the user's module.
        optimizer: the wrapped optimizer; its groups' values of now count as the config's.
        strategy: begun.
        worker: whose state this is.
    """

    def __init__(self, module: nn.Module, optimizer: StrategyOptimizer, strategy: Strategy, worker: int) -> None:
        self._module, self._optimizer, self._strategy, self._worker = module, optimizer, strategy, worker
        self._fresh_groups = [_scalars(group) for group in optimizer.param_groups]
        self._kind = type(optimizer.keeper).__name__
        self._sizes = [len(group["params"]) for group in optimizer.param_groups]
        self._names = {id(p): name for name, p in module.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in self._names:
                    raise UserError("the optimizer holds a parameter that is not the module's: a checkpoint could not name it")
        if extra := [name for name, value in module.state_dict().items() if not isinstance(value, Tensor)]:
            raise UserError(f"the module keeps something other than tensors in {extra[0]}, which a checkpoint cannot hold")

    def check(self) -> None:
        """Raise UserError if the optimizer's state is of a kind that cannot be saved; to be called after its first update."""
        self._optimizer_state(self._optimizer.state)

    def capture(self, facts: dict[str, Any], local_facts: dict[str, Any]) -> Snapshot:
        """The state now; ``facts`` and ``local_facts`` go along."""
        model, buffers = _parameters_and_buffers(self._module)
        keeper = self._optimizer.keeper
        state, scalars = self._optimizer_state(keeper.whole_state() if isinstance(keeper, MatrixOptimizer) else keeper.state)
        replica = _prefixed("model.", model) | _prefixed("optimizer.", state)
        shared, local = (replica, {}) if self._strategy.replicated else ({}, replica)
        generators, generator_facts = generator_state(self._strategy.x.device)
        shared = shared | _prefixed("strategy.", self._strategy.shared)
        local = local | _prefixed("buffer.", buffers) | _prefixed("strategy.", self._strategy.local) | generators
        replica_facts = {"optimizer": scalars, "counts": asdict(self._optimizer.counts)}
        own_facts = local_facts | {"worker": self._worker, "generators": generator_facts}
        if self._strategy.replicated:
            return Snapshot(shared, local, facts | replica_facts, own_facts)
        return Snapshot(shared, local, facts, own_facts | replica_facts)

    def restore(self, snapshot: Snapshot, everybody: Sequence[Tensors] | None = None) -> None:
        """Put a snapshot back, bit by bit.

        Args:
            snapshot: this worker's.
            everybody: what was each worker's own, if the saved run had another number of workers or a strategy set otherwise.

        Raises:
            UserError: if it is of another model, or holds nothing for this worker where that is needed.
        """
        replica = snapshot.shared if self._strategy.replicated else snapshot.local
        model, buffers = _parameters_and_buffers(self._module)
        _copy_into(model, _stripped("model.", replica), "parameter", "of another model")
        _copy_into(
            self._strategy.shared, _stripped("strategy.", snapshot.shared), "strategy state", "of a strategy with other settings"
        )
        facts = snapshot.shared_facts if self._strategy.replicated else snapshot.local_facts
        self._restore_optimizer(_stripped("optimizer.", replica), facts["optimizer"])
        self._optimizer.counts = StepCounts(**facts["counts"])
        _copy_into(buffers, _stripped("buffer.", snapshot.local), "buffer", "of another model")
        if everybody is None:
            _copy_into(
                self._strategy.local,
                _stripped("strategy.", snapshot.local),
                "strategy state",
                "of a strategy with other settings",
            )
        else:
            self._strategy.adopt([_stripped("strategy.", each) for each in everybody])
        if snapshot.local_facts["worker"] == self._worker:  # else a worker that the saved run did not have
            restore_generators(snapshot.local, snapshot.local_facts["generators"], self._strategy.x.device)

    def _optimizer_state(self, state: Mapping[Tensor, dict[str, Any]]) -> tuple[Tensors, dict[str, Any]]:
        """The optimizer's tensors by parameter's name, and what else it keeps: plain values and changed group entries."""
        tensors: Tensors = {}
        plain: dict[str, Any] = {}
        sharded = []
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names[id(parameter)]
                for entry, value in state.get(parameter, {}).items():
                    kept: dict[str, Any] = tensors if isinstance(value, Tensor) else plain
                    if not isinstance(value, Tensor | bool | int | float | str | None):
                        kind = type(value).__name__
                        raise UserError(
                            f"{self._kind} keeps a {kind} in state[{name}][{entry!r}], which a checkpoint cannot hold"
                        )
                    kept[f"{name}/{entry}"] = value
                    if isinstance(value, Tensor) and is_sharded(value):
                        sharded.append(f"{name}/{entry}")
                        tensors[f"{name}/{entry}"] = shard_of(value)
        moved = [
            {key: [fresh.get(key), now] for key, now in _scalars(group).items() if now != fresh.get(key)}
            for fresh, group in zip(self._fresh_groups, self._optimizer.param_groups, strict=True)
        ]
        return tensors, {"kind": self._kind, "sizes": self._sizes, "plain": plain, "groups": moved, "sharded": sharded}

    def _restore_optimizer(self, tensors: Tensors, scalars: dict[str, Any]) -> None:
        if (scalars["kind"], scalars["sizes"]) != (self._kind, self._sizes):
            raise UserError(
                f"the checkpoint is of another optimizer: {scalars['kind']} with groups of {scalars['sizes']} parameters there, "
                f"{self._kind} with {self._sizes} here"
            )
        state: dict[str, dict[str, Any]] = {}
        sharded, parameters = set(scalars.get("sharded", ())), dict(self._module.named_parameters())
        for path, value in (tensors | scalars["plain"]).items():
            name, entry = path.rsplit("/", 1)
            state.setdefault(name, {})[entry] = as_shard(value, parameters[name]) if path in sharded else value
        try:
            _load_state(self._optimizer.keeper, state, self._names)
        except ValueError as error:
            raise UserError(f"the checkpoint does not fit the optimizer: {error}") from error
        for moved, fresh, group in zip(scalars["groups"], self._fresh_groups, self._optimizer.param_groups, strict=True):
            # A value that the optimizer itself advanced (a counter, say) goes on; one that the config has changed since wins.
            group.update({key: now for key, (was, now) in moved.items() if fresh.get(key) == was})


def _load_state(optimizer: Optimizer, state: dict[str, dict[str, Any]], names: dict[int, str]) -> None:
    """Give every parameter its entries, in the dtype they were saved in (``load_state_dict`` casts to the parameter's)."""
    fresh = optimizer.state_dict()
    numbered, number = {}, 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entries = state.get(names[id(parameter)])
            if entries is not None:
                numbered[number] = entries
            number += 1
    optimizer.load_state_dict({"state": numbered, "param_groups": fresh["param_groups"]})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for entry, saved in state.get(names[id(parameter)], {}).items():
                held = optimizer.state[parameter].get(entry)  # None: another worker keeps it
                if isinstance(saved, Tensor) and held is not None and held.dtype != saved.dtype:
                    optimizer.state[parameter][entry] = saved.to(held.device)


def _parameters_and_buffers(module: nn.Module) -> tuple[Tensors, Tensors]:
    """All parameters, tied ones once, or this worker's shards, and the buffers that a ``state_dict`` would hold."""
    persistent = module.state_dict(keep_vars=True).keys()
    parameters = {name: shard_of(p) for name, p in module.named_parameters()}
    return parameters, {name: b for name, b in module.named_buffers() if name in persistent}


def _copy_into(live: Tensors, saved: Tensors, what: str, otherwise: str) -> None:
    missing, extra = sorted(live.keys() - saved.keys()), sorted(saved.keys() - live.keys())
    if missing or extra:
        raise UserError(f"the checkpoint is {otherwise}: {what} {(missing + extra)[0]} is "
                        + ("not in it" if missing else "in it, but not in this run"))  # fmt: skip
    for name, tensor in live.items():
        if tensor.shape != saved[name].shape:
            raise UserError(f"the checkpoint is {otherwise}: {what} {name} has shape {list(saved[name].shape)} in it, "
                            f"{list(tensor.shape)} here")  # fmt: skip
        with torch.no_grad():
            tensor.copy_(saved[name])


def _scalars(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if isinstance(value, bool | int | float | str)}


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _stripped(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
