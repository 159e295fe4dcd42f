"""Fully sharded data parallelism inside a replica group: members keep, step and exchange a shard of every parameter each.

"PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (arXiv 2304.11277), by torch's ``fully_shard``, which shards
parameters on their first axis, gathers a block's for its forward and again for its backward, and leaves every member its shard of
the mean gradient. The strategy's vector is a copy of this worker's shards; its peers are whoever has the same place in its group.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from disttrain.parameters import FlatParameters, lay_out
from disttrain.strategies.attach import PreparedModule, start_alike
from disttrain.strategies.local_updates.engine import LocalUpdates
from disttrain.strategies.shards import gathered, shard_of
from disttrain.worlds.groups import Groups
from disttrain.worlds.torch_world import TorchWorld
from disttrain.worlds.traffic import all_gather_wire_bytes, all_reduce_wire_bytes, transpose_wire_bytes

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # their names before torch 2.13
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def attach_sharded(module: nn.Module, strategy: LocalUpdates, world: TorchWorld, seed: int = 0) -> ShardedModule:
    """Shard ``module`` inside this worker's group, and let ``strategy`` begin with the shards.

    The optimizer must be built after this, over the module's parameters as they are then.

    Raises:
        ValueError: if the workers cannot be divided into such groups, or the trainable parameters differ in dtype or device.
    """
    start_alike(module, FlatParameters(module), world)
    groups = Groups(world, strategy.group_size)
    lane = groups.own_steps
    assert isinstance(lane, TorchWorld)
    model = ShardedModule(module, strategy, lane)
    strategy.groups = groups
    strategy.begin(model.x, model.layout, world, seed)
    return model


class ShardedModule(PreparedModule):
    """The user's module with a shard of every trainable parameter on each member of a group.

    Every member must call it, in training and in evaluation, as often as the others.

    Args:
        module: the user's, equal on all members, and sharded from now on.
        strategy: what the shards are exchanged by.
        lane: the members.

    Attributes:
        x: ``[1, d]``, a copy of this worker's shards, laid out by ``layout``.
    """

    def __init__(self, module: nn.Module, strategy: LocalUpdates, lane: TorchWorld) -> None:
        super().__init__(module, strategy, None)
        self._lane = lane
        self.__dict__["_whole"] = _shell_of(module)  # past nn.Module's registry: it is not a part of this one
        shard(module, lane)
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._sharded = [p for _, p in named]
        self.layout = lay_out([(name, shard_of(p)) for name, p in named])
        self.x = shard_of(self._sharded[0]).new_zeros(1, self.layout.d)
        self._views = [view for _, view in self.layout.named(self.x[0])]
        self._pull()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside it, backward accumulates this worker's own gradients, whole ones, and nothing is exchanged."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Inside it, ``x`` holds the live shards; what is written to it becomes theirs at the end."""
        self._reshard()
        self._pull()
        before = self.x._version
        yield
        if self.x._version != before:
            self._push()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The Euclidean norm of the whole model's gradients. Every member must call it."""
        own = nn.utils.get_total_norm([shard_of(gradient) for gradient in gradients])
        return (self._lane.mean(own.square().view(1, 1)) * self._lane.size).sqrt().squeeze()

    def detach(self) -> nn.Module:
        """Gather the shards; returns a module like the user's with whole parameters. Every member must call it."""
        self._reshard()
        whole: nn.Module = self.__dict__["_whole"]
        parameters, buffers = dict(self.module.named_parameters()), dict(self.module.named_buffers())
        for name, parameter in whole.named_parameters():
            live = parameters[name].detach()
            parameter.data = gathered(live)
        for name, buffer in whole.named_buffers():
            if buffer is not buffers[name]:
                buffer.copy_(buffers[name])
        self.module = whole.train(self.module.training)
        return self.module

    def _reshard(self) -> None:
        """Forget whole parameters that an evaluation has left, which would not follow their shards."""
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    def _pull(self) -> None:
        for view, parameter in zip(self._views, self._sharded, strict=True):
            view.copy_(shard_of(parameter))

    def _push(self) -> None:
        for view, parameter in zip(self._views, self._sharded, strict=True):
            shard_of(parameter).copy_(view)


def _shell_of(module: nn.Module) -> nn.Module:
    """A copy with parameters that are empty as yet; buffers and frozen parameters, which are not sharded, are the same ones."""
    same: dict[int, Any] = {id(each): each for each in (*module.buffers(), *module.parameters())}
    same |= {id(p): nn.Parameter(p.new_empty(0)) for p in module.parameters() if p.requires_grad}
    return copy.deepcopy(module, same)


def shard(module: nn.Module, lane: TorchWorld) -> None:
    """Shard a module's trainable parameters over a lane: block by block, then what is left; every byte is counted."""
    assert lane.group is not None
    device = next(p.device for p in module.parameters() if p.requires_grad)
    frozen = {p for p in module.parameters() if not p.requires_grad}
    mesh = DeviceMesh.from_group(lane.group, device.type)
    for part in (*blocks_of(module), module):
        sharded = fully_shard(part, mesh=mesh, ignored_params=frozen)
        sharded.set_custom_all_gather(_AllGather(lane))  # type: ignore[arg-type]
        sharded.set_custom_reduce_scatter(_ReduceScatter(lane))  # type: ignore[arg-type]


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The entries of the outermost module lists, but for those that are not called themselves, or share a parameter."""
    everywhere = _uses(module)
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    inner = {id(part) for each in lists for part in each.modules() if part is not each}
    entries = [entry for each in lists if id(each) not in inner for entry in each]
    return [entry for entry in entries if _is_called(entry) and _uses(entry).items() <= everywhere.items()]


def _uses(module: nn.Module) -> Counter[nn.Parameter]:
    """How often each parameter is registered."""
    return Counter(p for part in module.modules() for p in part.parameters(recurse=False))


def _is_called(module: nn.Module) -> bool:
    """Whether it has a forward, and something to train."""
    has_forward = type(module).forward is not nn.Module.forward
    return has_forward and any(p.requires_grad for p in module.parameters())


class _Counted:
    """What the two collectives of FSDP have in common: they are counted, and their seconds, for they block."""

    def __init__(self, lane: TorchWorld) -> None:
        self._traffic, self._size, self._backend = lane.traffic, lane.size, dist.get_backend(lane.group)

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    @contextmanager
    def _counting(self, payload_bytes: int, wire_bytes: int) -> Iterator[None]:
        self._traffic.add(payload_bytes, wire_bytes)
        start = time.perf_counter()
        yield
        self._traffic.expose(time.perf_counter() - start)


class _AllGather(_Counted):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        num_bytes = input_tensor.numel() * input_tensor.element_size()
        with self._counting(num_bytes, all_gather_wire_bytes(num_bytes, self._size)):
            return _all_gather(output_tensor, input_tensor, group=group, async_op=async_op)


class _ReduceScatter(_Counted):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        num_bytes = input_tensor.numel() * input_tensor.element_size()
        # gloo sums by an all-reduce, and keeps a part: as many bytes, as the kernel counts them.
        wire_bytes = all_reduce_wire_bytes if self._backend == "gloo" else transpose_wire_bytes
        with self._counting(num_bytes, wire_bytes(num_bytes, self._size)):
            return _reduce_scatter(output_tensor, input_tensor, group=group, op=op, async_op=async_op)
