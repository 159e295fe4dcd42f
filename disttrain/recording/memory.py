"""How much memory this process has needed so far."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was allocated on a GPU at any moment, or the most that the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes
