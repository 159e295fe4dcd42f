"""Finding an object by its import path, ``"package.module:attribute"``, for settings that name the user's own code."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType
from typing import Any


def resolve(path: str) -> Any:
    """The object that ``path`` names; ``"package.module:Class.method"`` reaches inside a class.

    Only modules on Python's own search path are found, as with ``import``; a command line's working directory is on it
    if the caller put it there.

    Raises:
        ValueError: if ``path`` has another form, its module cannot be imported, or the attribute is not there.
    """
    module_name, attributes = _split(path)
    found: Any = _import(module_name, path)
    for depth, attribute in enumerate(attributes):
        if not hasattr(found, attribute):
            owner = ":".join([module_name, ".".join(attributes[:depth])]).rstrip(":")
            raise ValueError(f"{path!r}: {owner} has no {attribute!r}{_nearest(attribute, found)}")
        found = getattr(found, attribute)
    return found


def _split(path: str) -> tuple[str, list[str]]:
    """Module name and attribute names of ``path``; every dotted part must be a Python identifier."""
    module_name, _, attributes = path.partition(":")
    names = attributes.split(".")
    if not all(part.isidentifier() for part in [*module_name.split("."), *names]):
        raise ValueError(f"{path!r} is not an import path; write 'package.module:attribute'{_colon_hint(path)}")
    return module_name, names


def _colon_hint(path: str) -> str:
    """A suggestion for who wrote ``package.module.attribute``, with a dot where the colon belongs."""
    module_name, dot, attribute = path.rpartition(".")
    return f", here probably '{module_name}:{attribute}'" if dot and ":" not in path else ""


def _import(module_name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path!r}: the module {module_name} cannot be imported ({reason})") from error


def _nearest(attribute: str, owner: object) -> str:
    """``; did you mean …`` with the names of ``owner`` nearest to ``attribute``, or else its public names."""
    public = [name for name in dir(owner) if not name.startswith("_")]
    near = difflib.get_close_matches(attribute, public, n=3)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; it has {', '.join(public[:12])}{', …' if len(public) > 12 else ''}" if public else ""
