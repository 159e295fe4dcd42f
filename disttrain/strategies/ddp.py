"""Data parallel: every step, the gradients' mean over all workers.

"PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (arXiv 2006.15704): buckets of gradients are
all-reduced while backward computes the next ones. In fp32 the result equals torch DDP's bit by bit.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from disttrain.compression.reduce import Dense, Reducer, TwoPhaseCast
from disttrain.strategies.base import Strategy, StrategyConfig, strategies

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class GradientConfig(StrategyConfig):
    """What strategies have in common that average gradients during backward."""

    find_unused_parameters: bool = False
    """Set it if some parameters take no part in some steps; costs a walk over the graph in each."""


@strategies.register
class DDPConfig(GradientConfig):
    """All-reduce of the gradients as they are."""

    name: Literal["ddp"] = "ddp"

    def build(self) -> DDP:
        """A strategy that averages gradients."""
        return DDP(Dense(), self.find_unused_parameters)


@strategies.register
class DDPCastConfig(GradientConfig):
    """The mean of the gradients rounded to 16 bits: half the bytes, on gloo and nccl."""

    name: Literal["ddp_cast"] = "ddp_cast"
    dtype: Literal["bf16", "fp16"] = "bf16"
    """What is sent; sums are fp32. fp16 has three bits more precision, but beyond 65,504 it overflows (the step is skipped)."""

    def build(self) -> DDP:
        """A strategy that averages gradients in 16 bits."""
        return DDP(TwoPhaseCast(DTYPES[self.dtype]), self.find_unused_parameters)


class DDP(Strategy):
    """Average the gradients in every step; the workers stay bitwise equal."""

    replicated = lockstep = True

    def __init__(self, reducer: Reducer, find_unused_parameters: bool = False) -> None:
        self.reducer, self.find_unused_parameters = reducer, find_unused_parameters

    def agree(self, values: Tensor) -> Tensor:
        """The mean over all workers."""
        return self.world.mean(values)
