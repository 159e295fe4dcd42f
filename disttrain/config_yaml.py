"""YAML in and out, for plain values only: null, booleans, numbers, text, lists, and mappings with text as keys.

What is read is YAML 1.2's core schema: ``3e-4`` and ``1e6`` are numbers; ``on``, ``yes`` and ``12:30`` are text. Tags
are refused, never executed; a key given twice is an error; aliases cannot blow a small text up. Mistakes are collected,
so that they can be reported together. What is written here reads back as the same values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from disttrain.config_errors import KeyPath, Origin, Problem

MAX_VALUES = 10_000
MAX_DEPTH = 30
NOT_UNICODE = "not valid Unicode"
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels, or an alias that contains itself"

CONSTANTS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    text: text[0] in "tT" for text in ("true", "True", "TRUE", "false", "False", "FALSE")
}
INTEGER = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
LARGEST_EXACT = 2**53  # beyond it, a float's last digits need not be those that were written
KNOWN_TAG = re.compile("tag:yaml.org,2002:(str|int|float|bool|null|seq|map|timestamp|merge|value)")

# What is written without quotes: text like this, unless it is a constant or a number, or was a boolean in YAML 1.1.
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./+-]*|[0-9.]+[A-Za-z]{1,3}")
YAML_1_1_BOOLEAN = re.compile("y|yes|n|no|on|off", re.IGNORECASE)


@dataclass
class Reading:
    """What a YAML text says."""

    value: Any = None
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    """Where each value inside ``value`` was written."""
    problems: list[Problem] = field(default_factory=list)


def read_yaml(text: str, path: KeyPath, origin_of_line: Callable[[int], Origin]) -> Reading:
    """Read a text whose value stands at ``path`` of a config; a value that cannot be read is None, with a problem."""
    reader = _Reader(origin_of_line)
    reader.read(text, path)
    return reader.reading


def resolve_plain(text: str) -> Any:
    """What unquoted text means: null, a boolean, a number, or the text itself.

    ``1e6`` is a whole number: this is how people write large ones. A number too large for a float stays text.
    """
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text):
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    if not FLOAT.fullmatch(text) or not math.isfinite(float(text)):
        return text
    number = float(text)
    is_whole = "e" in text.lower() and number.is_integer() and abs(number) <= LARGEST_EXACT
    return int(number) if is_whole else number


def write_yaml(tree: Mapping[str, Any], comment: Callable[[KeyPath], str] | None = None) -> str:
    """``tree`` as YAML, one line for each leaf, with ``comment(path)`` behind it in a column."""
    rows = list(_rows(tree, ()))
    if comment is None:
        return "".join(f"{text}\n" for text, _ in rows)
    width = max((len(text) for text, path in rows if path is not None), default=0)
    return "".join(f"{text:<{width}}  # {comment(path)}\n" if path else f"{text}\n" for text, path in rows)


def leaves(tree: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is not a section, with its path; an empty section counts as a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _rows(tree: Mapping[str, Any], path: KeyPath) -> Iterator[tuple[str, KeyPath | None]]:
    """Lines of block style, with the path of the leaf that each holds, or None for a section's heading."""
    indent = "  " * len(path)
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_flow(key)}:", None
            yield from _rows(value, (*path, key))
        else:
            yield f"{indent}{_flow(key)}: {_flow(value)}", (*path, key)


def _flow(value: Any) -> str:
    """A value within one line."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_flow(key)}: {_flow(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return json.dumps(value)


def _text(text: str) -> str:
    """Text, in quotes where it would otherwise be read as something else; what cannot be printed is escaped."""
    if PLAIN.fullmatch(text) and isinstance(resolve_plain(text), str) and not YAML_1_1_BOOLEAN.fullmatch(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in quoted)


class _UnreadableError(Exception):
    """A text that is not YAML, or YAML of an absurd size."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


class _Reader:
    """Turns nodes into plain values; a method per kind of node."""

    def __init__(self, origin_of_line: Callable[[int], Origin]) -> None:
        self.origin_of_line = origin_of_line
        self.reading, self.num_values = Reading(), 0

    def read(self, text: str, path: KeyPath) -> None:
        """Read the whole text; whatever is wrong with the whole of it becomes a problem at ``path``."""
        try:
            node = _compose(text)
            self.reading.value = None if node is None else self._value(node, path, self.origin_of_line(1))
        except _UnreadableError as error:
            self._complain(path, str(error), self.origin_of_line(error.line))

    def _complain(self, path: KeyPath, message: str, origin: Origin) -> None:
        self.reading.problems.append(Problem(origin, path, message))

    def _value(self, node: Node, path: KeyPath, origin: Origin) -> Any:
        """The plain value of any node, which stands at ``path`` and was written at ``origin``."""
        self._limit(path)
        self.reading.origins[path] = origin
        if node.ctag.handle or not KNOWN_TAG.fullmatch(str(node.tag)):
            self._complain(path, f"the tag {node.tag} is not allowed; a config holds plain values only", origin)
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self._value(each, (*path, index), self._origin(each)) for index, each in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        try:
            return _scalar(node)
        except UnicodeDecodeError:
            self._complain(path, NOT_UNICODE, origin)
            return None

    def _origin(self, node: Node) -> Origin:
        return self.origin_of_line(node.start_mark.line + 1)

    def _limit(self, path: KeyPath) -> None:
        """Aliases make a short text large, or endless: count what they stand for."""
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise _UnreadableError(f"more than {MAX_VALUES:,} values, counting what aliases stand for")
        if len(path) > MAX_DEPTH:
            raise _UnreadableError(TOO_DEEP)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        """A mapping without the entries whose key is not usable, and with the first of two equal ones."""
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, mistake = _key(key_node)
            inner, origin = (*path, key), self._origin(key_node)
            if key in values:
                mistake = f"given twice, first at {self.reading.origins[inner]}"
            if mistake:
                self._complain(inner, mistake, origin)
            else:
                values[key] = self._value(value_node, inner, origin)
        return values


def _compose(text: str) -> Node | None:
    """The nodes of a YAML text: marked text and structure, from which ruamel has made no object yet."""
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH
    yaml.composer.warn_double_anchors = False
    try:
        node: Node | None = yaml.compose(text)
    except MaxDepthExceededError as error:
        raise _UnreadableError(TOO_DEEP) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _UnreadableError(f"not valid YAML: {_description(error)}", mark.line + 1 if mark else 1) from error
    except Exception as error:  # ruamel's assertions, and what chr() thinks of "\U99999999"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _UnreadableError(f"not valid YAML: {reason}") from error
    return node


def _description(error: MarkedYAMLError) -> str:
    """What ruamel found, and what it was doing."""
    text = ", ".join(filter(None, [error.context, error.problem]))
    return f"{text}; indent with spaces, not tabs" if r"'\t'" in text else text


def _key(node: Node) -> tuple[str, str | None]:
    """The text of a key, and what is wrong with it."""
    if not isinstance(node, ScalarNode):
        return "?", "a key must be text"
    if node.value == "<<" and node.style is None:
        return node.value, "merging is not supported; write the keys themselves"
    try:
        key = _scalar(node)
    except UnicodeDecodeError:
        return node.value, NOT_UNICODE
    return (key, None) if isinstance(key, str) else (node.value, "a key must be text; put it in quotes")


def _scalar(node: ScalarNode) -> Any:
    """The value of a scalar; raises UnicodeDecodeError for half of a pair of surrogates.

    JSON escapes a character beyond U+FFFF as such a pair, and JSON is YAML.
    """
    text = node.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    return resolve_plain(text) if node.style is None else text
