"""Compressed gradients for a script that has a torch DDP and an optimizer of its own, in one call.

    model = DistributedDataParallel(model)
    compression = compress_gradients(model, BlockTopK(k=3, block=256), EF14())
    ...                                               # the script as it was
    torch.save(compression.state_dict(), f"compression_rank{rank}.pt")       # tensors only; each rank's own

Everything else that a run of ours has (schedules, checkpoints, records) stays the script's business.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from disttrain.compression.base import Compressor
from disttrain.compression.feedback import Feedback
from disttrain.compression.mean import ReducerName
from disttrain.compression.power_sgd import PowerSGD
from disttrain.parameters import lay_out
from disttrain.strategies.attach import GradientHook
from disttrain.strategies.compressed import Compressed
from disttrain.worlds.torch_world import TorchWorld
from disttrain.worlds.traffic import Traffic


class GradientCompression:
    """The compression inside a DDP module; made by :func:`compress_gradients`.

    Attributes:
        traffic: what this worker has handed over and sent for gradients.
        description: what was decided, and the bytes of a step.
    """

    def __init__(self, strategy: Compressed) -> None:
        self._strategy = strategy
        self.traffic: Traffic = strategy.world.traffic
        self.description = strategy.description

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's errors and estimates, and what all ranks share: copies, to be saved by every rank."""
        return {name: tensor.clone() for name, tensor in self._live().items()} | {"rank_and_size": self._rank_and_size()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Go on from a state of this rank, saved with as many ranks.

        Raises:
            ValueError: naming what does not fit; nothing is changed then.
        """
        live = self._live()
        ours = self._rank_and_size()
        saved = state_dict.get("rank_and_size", ours)
        if not torch.equal(saved, ours):
            rank, size = saved.tolist()
            raise ValueError(f"the state is of rank {rank} of {size}, this is rank {int(ours[0])} of {int(ours[1])}")
        state_dict = {name: tensor for name, tensor in state_dict.items() if name != "rank_and_size"}
        if odd := sorted(live.keys() ^ state_dict.keys()):
            raise ValueError(f"the state is of another compression: {odd[0]} is {'not ' if odd[0] in live else ''}in it")
        for name, tensor in live.items():
            if tensor.shape != state_dict[name].shape:
                there, here = list(state_dict[name].shape), list(tensor.shape)
                raise ValueError(f"the state is of another model: {name} has shape {there} in it, {here} here")
        for name, tensor in live.items():
            tensor.copy_(state_dict[name])

    def _rank_and_size(self) -> Tensor:
        return torch.tensor([int(self._strategy.world.positions), self._strategy.world.size])

    def _live(self) -> dict[str, Tensor]:
        return self._strategy.shared | self._strategy.local


def compress_gradients(
    ddp: DistributedDataParallel,
    compressor: Compressor | PowerSGD,
    feedback: Feedback | None = None,
    *,
    reducer: ReducerName = "auto",
    warmup_steps: int = 0,
    seed: int = 0,
    scaler: torch.amp.GradScaler | None = None,
) -> GradientCompression:
    """Let a DDP module average compressed gradients; to be called by every rank, after wrapping and before the first backward.

    Gradients that are not finite on some rank are not finite in every rank's ``p.grad``, and leave the feedback's states as they
    were, so a GradScaler skips the step everywhere. Accumulate inside ``no_sync()``: every synchronised backward is compressed.

    Args:
        ddp: on gloo or nccl; its hook is taken, so it must not have one.
        compressor: what becomes of a gradient.
        feedback: what becomes of the rest; None: EF14.
        reducer: see :class:`~disttrain.strategies.compressed.Compressed`.
        warmup_steps: steps that are not compressed.
        seed: of what the compressor draws, equal on all ranks.
        scaler: what multiplies the loss, if anything does.

    Raises:
        ValueError: if compressor, feedback and reducer do not work together.
    """
    unused = bool(ddp.find_unused_parameters or ddp.static_graph)
    strategy = Compressed(compressor, feedback, reducer, warmup_steps, find_unused_parameters=unused)
    strategy.loss_scale = None if scaler is None else scaler.get_scale
    reduced = {id(p) for p in ddp._module_parameters}  # when it was wrapped, without what it was told to ignore
    named = [(name, p) for name, p in ddp.module.named_parameters() if id(p) in reduced]
    world = TorchWorld(ddp.process_group)
    strategy.begin(named[0][1].new_empty(1, 0), lay_out(named), world, seed)
    ddp.register_comm_hook(None, GradientHook(strategy, dict(named), world).reduce)
    return GradientCompression(strategy)
