"""What is wrong with a config, all of it at once, in the reader's words rather than pydantic's.

quickstart.yaml:7: optimizer.lr: must be greater than 0 (got -1)
command line: optimizer.name: unknown optimizer "adamww"; did you mean "adamw"? registered: adamw, muon, sgd
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from disttrain.component import UserError

KeyPath = tuple[str | int, ...]
"""Where a value stands in a config: keys, and indices of lists."""

EXPECTED = {
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "multiple_of": "must be a multiple of {multiple_of:g}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "none_required": "must be null",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_pattern_mismatch": "must match {pattern}",
    "dict_type": "must be a section of keys and values",
    "model_type": "must be a section of keys and values",
    "missing": "required, but not given",
    "union_tag_not_found": "its name is required, but not given",
}
"""What pydantic's error types mean; for types that are not here its own words are taken."""

LONGEST_VALUE = 60


class Origin(NamedTuple):
    """Where a setting comes from: a file and its line, or a source without lines."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Problem(NamedTuple):
    """One mistake: where it was written, which setting it concerns (none: the whole file), and what is wrong.

    As text it is one printable line, whatever the file holds.
    """

    origin: Origin
    path: KeyPath
    message: str

    def __str__(self) -> str:
        text = ": ".join(filter(None, [str(self.origin), dotted(self.path), self.message]))
        return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class ConfigError(UserError):
    """A config that cannot be used.

    Attributes:
        lines: every mistake that was found, one line each.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


def dotted(path: KeyPath) -> str:
    """A path as it is written on the command line: ``optimizer.groups[0].lr``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def explain(errors: Sequence[ErrorDetails], tree: Mapping[str, Any], model: type[BaseModel]) -> Iterator[tuple[KeyPath, str]]:
    """Path and message of every mistake that pydantic found when it validated ``tree`` as ``model``.

    A value that fits none of several allowed types has one error for each; these become one message.
    """
    found: dict[KeyPath, tuple[list[str], str]] = {}
    for error in errors:
        path = _path(error, tree, model)
        messages, _ = found.setdefault(path, ([], _got(error, path)))
        messages.append(_message(error, path, tree, model))
    for path, (messages, got) in found.items():
        yield path, " or ".join(dict.fromkeys(messages)) + got


def _path(error: ErrorDetails, tree: Any, model: type[BaseModel]) -> KeyPath:
    """The error's location in ``tree``, without the tags of unions that pydantic mixes in."""
    path: list[str | int] = []
    node = tree
    for depth, part in enumerate(error["loc"], start=1):
        is_last = depth == len(error["loc"])
        is_tag = not is_last and isinstance(node, dict) and node.get("name") == part
        if not is_tag and _holds(node, part):
            path.append(part)
            node = node[part]
        elif is_last and (error["type"] == "missing" or _is_field(part, _classes(tuple(path), tree, model))):
            path.append(part)  # nobody wrote it: it is required, or its default does not fit the other values
    return (*path, "name") if error["type"].startswith("union_tag") else tuple(path)


def _holds(node: Any, part: str | int) -> bool:
    """Whether ``node[part]`` exists."""
    return part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int) and part < len(node)


def _message(error: ErrorDetails, path: KeyPath, tree: Mapping[str, Any], model: type[BaseModel]) -> str:
    """What is wrong, without the value."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path, tree, model)
    if _is_about_a_name(error, path):
        name = context.get("tag", error["input"])
        return _unknown_name(path, str(name), context.get("expected_tags") or context["expected"])
    if kind in EXPECTED:
        expected = EXPECTED[kind].format_map(context | {"expected": str(context.get("expected")).replace("'", '"')})
        if kind == "union_tag_not_found":
            near = difflib.get_close_matches("name", map(str, error["input"]), n=1)
            return f'{expected}; did you mean it by "{near[0]}"?' if near else expected
        is_component = isinstance(error["input"], str) and _is_field("name", _classes(path, tree, model))
        return f"{expected}, such as {{name: {error['input']}}}" if is_component else expected
    return str(context.get("error", error["msg"]))  # a validator's own words come without pydantic's prefix


def _got(error: ErrorDetails, path: KeyPath) -> str:
    """The value that was refused, where the message is about the value."""
    kind, value = error["type"], error["input"]
    is_about_a_key = kind in ("missing", "extra_forbidden", "union_tag_not_found") or _is_about_a_name(error, path)
    if is_about_a_key or isinstance(value, BaseModel) or (isinstance(value, dict) and kind not in EXPECTED):
        return ""
    text = json.dumps(value, ensure_ascii=False, default=str)
    shown = text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
    return f" (got {shown}{', which needs quotes to be text' if kind == 'string_type' else ''})"


def _is_about_a_name(error: ErrorDetails, path: KeyPath) -> bool:
    """Whether a component's name is none of the registered ones; where only one is, pydantic has no union."""
    is_only_choice = error["type"] == "literal_error" and len(path) > 1 and path[-1] == "name"
    return error["type"] == "union_tag_invalid" or is_only_choice


def _unknown_name(path: KeyPath, name: str, expected: str) -> str:
    """Message for a component that nobody registered; pydantic lists the ``expected`` ones in one string."""
    names = re.findall("'([^']*)'", expected)
    return f'unknown {path[-2]} "{name}"; {_did_you_mean(name, names)}registered: {", ".join(names)}'


def _unknown_key(path: KeyPath, tree: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Message for a key that its section does not have; it may be a typo, or at home in one other section."""
    section, key = path[:-1], str(path[-1])
    if "." in key:
        return "keys with dots are for the command line; in a file, nest them"
    allowed = sorted({name for found in _classes(section, tree, model) for name in found.model_fields})
    homes = list(_homes(key, tree, model))
    suggestion = f"did you mean {homes[0]}? " if len(homes) == 1 else _did_you_mean(key, allowed)
    return f"unknown key; {suggestion}allowed: {', '.join(allowed)}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f'did you mean "{near[0]}"? ' if near else ""


def _homes(key: str, tree: Mapping[str, Any], model: type[BaseModel]) -> Iterator[str]:
    """Where a key of this name exists: at the top, or as ``section.key`` of a section that this config has."""
    if key in model.model_fields:
        yield key
    for section in model.model_fields:
        absent = model.model_fields[section].default is None and tree.get(section) is None
        if not absent and _is_field(key, _classes((section,), tree, model)):
            yield f"{section}.{key}"


def _classes(path: KeyPath, tree: Any, model: type[BaseModel]) -> list[type[BaseModel]]:
    """The classes that the section at ``path`` may have: one, if the section's name tells."""
    classes, node = [model], tree
    for part in path:
        node = node[part] if _holds(node, part) else None
        if isinstance(part, str):
            fields = [found.model_fields[part] for found in classes if part in found.model_fields]
            classes = [found for field in fields for found in _models_in(field.annotation)]
        name = node.get("name") if isinstance(node, dict) else None
        classes = [found for found in classes if name and _default_name(found) == name] or classes
    return classes


def _is_field(key: object, classes: Iterable[type[BaseModel]]) -> bool:
    return any(key in found.model_fields for found in classes)


def _default_name(model: type[BaseModel]) -> object:
    return model.model_fields["name"].default if "name" in model.model_fields else None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that a type such as ``tuple[A | B, ...] | None`` mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
