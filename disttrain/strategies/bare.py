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
from disttrain.compression.power_sgd import PowerSGD
from disttrain.parameters import lay_out
from disttrain.strategies.attach import GradientHook
from disttrain.strategies.compressed import Compressed, ReducerName
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
        return {name: tensor.clone() for name, tensor in self._live().items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Go on from a state of this rank, saved with as many ranks.

        Raises:
            ValueError: naming what does not fit; nothing is changed then.
        """
        live = self._live()
        if odd := sorted(live.keys() ^ state_dict.keys()):
            raise ValueError(f"the state is of another compression: {odd[0]} is {'not ' if odd[0] in live else ''}in it")
        for name, tensor in live.items():
            if tensor.shape != state_dict[name].shape:
                saved, here = list(state_dict[name].shape), list(tensor.shape)
                raise ValueError(f"the state is of another model or number of ranks: {name} has shape {saved} in it, {here} here")
        for name, tensor in live.items():
            tensor.copy_(state_dict[name])

    def _live(self) -> dict[str, Tensor]:
        return self._strategy.shared | self._strategy.local


def compress_gradients(
    ddp: DistributedDataParallel,
    compressor: Compressor | PowerSGD,
    feedback: Feedback | None = None,
    *,
    reducer: ReducerName = "auto",
    warmup_steps: int = 0,
    find_unused_parameters: bool = False,
    seed: int = 0,
    scaler: torch.amp.GradScaler | None = None,
) -> GradientCompression:
    """Let a DDP module average compressed gradients; to be called by every rank, after wrapping and before the first backward.

    A step whose gradients are not finite on some rank reaches every rank's ``p.grad`` as NaN and leaves the feedback's states as
    they were, so a GradScaler skips it everywhere.

    Args:
        ddp: on gloo or nccl; its hook is taken, so it must not have one.
        compressor: what becomes of a gradient.
        feedback: what becomes of the rest; None: EF14.
        reducer: see :class:`~disttrain.strategies.compressed.Compressed`, as for the next two.
        warmup_steps: steps that are not compressed.
        find_unused_parameters: as given to DDP.
        seed: of what the compressor draws, equal on all ranks.
        scaler: what multiplies the loss, if anything does.

    Raises:
        ValueError: if compressor, feedback and reducer do not work together.
    """
    strategy = Compressed(compressor, feedback, reducer, warmup_steps, find_unused_parameters=find_unused_parameters)
    strategy.loss_scale = None if scaler is None else scaler.get_scale
    named = [(name, p) for name, p in ddp.module.named_parameters() if p.requires_grad]
    world = TorchWorld(ddp.process_group)
    strategy.begin(named[0][1].new_empty(1, 0), lay_out(named), world, seed)
    ddp.register_comm_hook(None, GradientHook(strategy, dict(named), world).reduce)
    return GradientCompression(strategy)
