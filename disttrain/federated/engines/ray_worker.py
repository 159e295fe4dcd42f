"""What runs inside a Ray actor, and what travels between it and the driver.

Tensors travel as their bytes, out of band: Ray then keeps large ones in shared memory, once a machine, and whoever gets them
reads them there without a copy. So what arrives must not be written to, which neither algorithms nor the round loop do.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disttrain.component import UserError
from disttrain.federated.algorithm import Vectors
from disttrain.federated.blocks import Block
from disttrain.federated.engines.base import Engine
from disttrain.launch.start import start_cpu

FETCH_SECONDS = 600.0
"""For the job, which the driver has put already. The driver's own deadline is what ends this wait."""


@dataclass(frozen=True)
class _Packed:
    """A tensor on its way; unpickling it gives the tensor itself."""

    tensor: Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        flat = self.tensor.detach().contiguous().view(-1)
        return _unpack, (flat.view(torch.uint8).numpy(), self.tensor.dtype, tuple(self.tensor.shape))


def _unpack(raw: np.ndarray[Any, Any], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not raw.size:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the memory is read-only, which is what is wanted
        return torch.frombuffer(raw.data, dtype=dtype).view(shape)


def packed(x: Any) -> Any:
    """The same with every tensor packed, inside mappings and dataclasses too."""
    if isinstance(x, Tensor):
        return _Packed(x)
    if isinstance(x, Mapping):
        return {key: packed(value) for key, value in x.items()}
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{field.name: packed(getattr(x, field.name)) for field in fields(x)})
    return x


@dataclass(frozen=True)
class Raised:
    """An exception of the code that computes, in words: the exception itself may be of a class that the driver cannot import."""

    text: str
    mistake: bool
    """Whether it is the user's to mend."""


class BlockWorker:
    """An actor: results depend on the arguments alone, so it does not matter which one computes what, nor how often."""

    def start(self, job: list[Any], threads: int, search_path: list[str]) -> Raised | None:
        """Get ready to compute.

        Args:
            job: the reference of an engine, inside a list so that Ray does not fetch it by itself, where failures are less clear.
            threads: of torch.
            search_path: the driver's, to find modules of the user's own.
        """
        import ray

        sys.path += [place for place in search_path if place not in sys.path]

        try:
            start_cpu(threads, 1)
            self._engine: Engine = ray.get(job[0], timeout=FETCH_SECONDS)
        except Exception as error:
            return _in_words(error)
        return None

    def run(self, message: Vectors, block: Block) -> Any:
        """The packed result of a block, whose message comes apart because all blocks share it; or what was raised."""
        try:
            return packed(self._engine.run([replace(block, message=message)])[0])
        except Exception as error:
            return _in_words(error)


def _in_words(error: Exception) -> Raised:
    """The error in a line, with where it happened."""
    if isinstance(error, UserError):
        return Raised(str(error), True)
    frames = traceback.extract_tb(error.__traceback__)
    reason = (str(error).strip().splitlines() or [""])[0]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return Raised(f"{type(error).__name__}: {reason}{where}", False)
