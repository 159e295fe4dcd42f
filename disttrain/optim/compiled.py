"""``torch.compile`` for the mathematics of an optimizer, as an option."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def maybe_compiled(function: Function, wanted: bool) -> Function:
    """``function``, through ``torch.compile`` if that is wanted.

    It is compiled once for each set of shapes and constants; what changes from step to step must come as tensors.
    """
    return _compiled(function) if wanted else function


MOST_SIGNATURES = 256
"""Shapes, dtypes and constants of one function, all models of the process together; torch's own limit is 8."""


@functools.cache
def _compiled(function: Function) -> Function:
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_SIGNATURES)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, MOST_SIGNATURES)
    return cast(Function, torch.compile(function, dynamic=False, fullgraph=True))
