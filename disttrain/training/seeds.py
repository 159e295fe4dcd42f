"""Random generators of a process: seeded at the start, carried through checkpoints."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disttrain.random import Stream, key


def seed_model(seed: int) -> None:
    """Seed what a model is initialised from: the same on every worker."""
    torch.manual_seed(key(seed, Stream.INIT))


def seed_worker(seed: int, worker: int) -> None:
    """Seed what happens during training (dropout, a user's augmentation): different on every worker."""
    own = key(seed, Stream.WORKER, worker=worker)
    torch.manual_seed(own)
    random.seed(own)
    np.random.seed(own % 2**32)


def generator_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch's, Python's and numpy's global generators, as tensors and JSON-able facts."""
    tensors = {"generator.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(device)
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, next_gauss = random.getstate()
    facts = {
        "numpy": [[int(k) for k in keys], int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), next_gauss],
    }
    return tensors, facts


def restore_generators(tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device) -> None:
    """Put back what :func:`generator_state` returned."""
    torch.set_rng_state(tensors["generator.cpu"])
    if device.type == "cuda" and "generator.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generator.cuda"], device)
    keys, position, has_gauss, gauss = facts["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, next_gauss = facts["python"]
    random.setstate((version, tuple(internal), next_gauss))
