"""A config file and the command line's overrides, merged into one tree that knows where each value was written.

An override ``optimizer.lr=3e-4`` replaces the value at its key; its value is read by the rules of the file. Nothing
here knows which keys a config has. Mistakes are collected, so that they can be reported together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from disttrain.config_errors import KeyPath, Origin, Problem, dotted
from disttrain.config_yaml import read_yaml

Keys = tuple[str, ...]
MAX_BYTES = 2**20
COMMAND_LINE = Origin("command line")
DEFAULT = Origin("default")


@dataclass
class Settings:
    """What was written, before it is known whether it makes sense."""

    tree: dict[str, Any] = field(default_factory=dict)
    """Plain values, as in JSON."""
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def origin(self, path: KeyPath) -> Origin:
        """Where the value at ``path`` was written, or the nearest section around it."""
        around = (path[:length] for length in range(len(path), -1, -1))
        return next((self.origins[each] for each in around if each in self.origins), DEFAULT)

    def has(self, path: KeyPath) -> bool:
        """Whether the value at ``path`` was written, rather than left to its default."""
        section = _get(self.tree, path[:-1])
        return isinstance(section, dict) and path[-1] in section

    def complain(self, path: KeyPath, message: str, origin: Origin | None = None) -> None:
        """Note a mistake about the value at ``path``; its origin, unless given, is that of the value."""
        self.problems.append(Problem(origin or self.origin(path), path, message))


def read_file(path: str | os.PathLike[str]) -> Settings:
    """The settings in a YAML file; whatever is wrong with it stands in ``problems``."""
    file = Origin(os.fspath(path))
    try:
        reading = read_yaml(_read_text(path), (), lambda line: file._replace(line=line))
    except ValueError as error:
        return Settings(origins={(): file}, problems=[Problem(file, (), str(error))])
    settings = Settings(origins=reading.origins | {(): file}, problems=reading.problems)
    if isinstance(reading.value, dict):
        settings.tree = reading.value
    elif not reading.problems:
        is_empty = reading.value is None
        settings.complain((), "empty; write {} to take every default" if is_empty else "must hold keys and values")
    return settings


def apply_overrides(settings: Settings, overrides: Sequence[str], default_names: Mapping[str, str]) -> None:
    """Set every ``a.b=value`` in ``settings``.

    An override of a component's name takes the new class's defaults: what the file says for the old class is dropped,
    with a notice.

    Args:
        settings: changed in place.
        overrides: as written on the command line.
        default_names: section of each component, and the name it has if the file gives none.
    """
    given: dict[Keys, Any] = {}
    for text in overrides:
        keys = _parse_key(text, settings)
        if keys and not _is_given_twice(keys, given, settings):
            reading = read_yaml(text.partition("=")[2], keys, lambda line: COMMAND_LINE)
            settings.problems += reading.problems
            given[keys] = reading.value
    for keys, value in given.items():
        if keys[-1] == "name" and any(section.partition(".")[0] == keys[0] for section in default_names):
            _drop_other_class(settings, keys[:-1], value, default_names, given)
    for keys, value in given.items():
        _set(settings, keys, value)


def _read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file; raises ValueError, saying why, unless it is UTF-8 of at most ``MAX_BYTES``."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes: not a config")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text, in line {data.count(10, 0, error.start) + 1}") from error


def _parse_key(text: str, settings: Settings) -> Keys | None:
    """The keys that an override goes through, or None if it is not of the form ``a.b=value``."""
    dotted_key, equals, _ = text.partition("=")
    keys = tuple(dotted_key.split("."))
    if equals and all(keys) and dotted_key.isprintable():
        return keys
    settings.complain((text,), "not an override; write section.key=value", COMMAND_LINE)
    return None


def _is_given_twice(keys: Keys, given: Mapping[Keys, Any], settings: Settings) -> bool:
    """Whether the value at ``keys``, a section around it or a part of it was overridden already."""
    for other in given:
        shared = min(len(keys), len(other))
        if keys[:shared] == other[:shared]:
            settings.complain(keys, f"given twice, first as {dotted(other)}", COMMAND_LINE)
            return True
    return False


def _drop_other_class(
    settings: Settings, section: Keys, name: Any, default_names: Mapping[str, str], given: Mapping[Keys, Any]
) -> None:
    """Empty a component's section, if the file wrote it for another class than ``name``; what is given anew is no loss."""
    written = _get(settings.tree, section)
    if not isinstance(written, dict):
        return
    old = written.pop("name", None) or default_names.get(dotted(section))
    if old is not None and old != name and written:
        dropped = [key for key in written if (*section, key) not in given]
        if dropped:
            settings.notices.append(
                f"{dotted(section)}.name={name} replaces {old}, so its settings no longer apply: {', '.join(dropped)} "
                f"({settings.origin(section)})"
            )
        written.clear()
        _forget_origins_inside(settings, section)


def _get(tree: Any, keys: KeyPath) -> Any:
    """The value at ``keys``, or None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _set(settings: Settings, keys: Keys, value: Any) -> None:
    """Replace the value at ``keys``, making the sections around it."""
    section = settings.tree
    for depth, key in enumerate(keys[:-1], start=1):
        outer = keys[:depth]
        if section.get(key) is None:
            section[key] = {}
            settings.origins[outer] = COMMAND_LINE
        section = section[key]
        if not isinstance(section, dict):
            settings.complain(keys, f"{dotted(outer)} is not a section ({settings.origin(outer)})", COMMAND_LINE)
            return
    section[keys[-1]] = value
    _forget_origins_inside(settings, keys)
    settings.origins[keys] = COMMAND_LINE


def _forget_origins_inside(settings: Settings, section: Keys) -> None:
    """Forget where the values inside ``section`` were written: they are gone."""
    for path in [path for path in settings.origins if path[: len(section)] == section and path != section]:
        del settings.origins[path]
