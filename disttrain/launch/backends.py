"""Which of torch's backends there are, and whether gloo works on this host."""

from __future__ import annotations

import torch
import torch.distributed as dist


def has_gloo() -> bool:
    """Whether this torch was built with it."""
    return dist.is_available() and dist.is_gloo_available()


def has_nccl() -> bool:
    """Whether this torch was built with it."""
    return dist.is_available() and dist.is_nccl_available()


def try_gloo() -> None:
    """Make a group of one, and leave it.

    Raises:
        RuntimeError: if that fails, as where the host's own name leads nowhere.
    """
    if dist.is_initialized():
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    dist.all_reduce(torch.ones(1))
    dist.destroy_process_group()
