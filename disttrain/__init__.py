"""disttrain: data-parallel PyTorch training over slow, uneven or unreliable networks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disttrain.config import load_config as load_config
    from disttrain.run import Run as Run

__all__ = ["Run", "load_config"]

_HOMES = {"Run": "disttrain.run", "load_config": "disttrain.config"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import disttrain.optim` does not import the rest."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'disttrain' has no attribute {name!r}")
