"""Sizes, durations and bit rates as people write them: ``25MiB``, ``64kB``, ``50ms``, ``5min``, ``100mbit``.

:data:`Size` and :data:`Duration` are field types. They validate from text with a unit, or from a plain number (bytes,
seconds); they serialise to the shortest text that reads back as exactly the same value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

SIZE_UNITS: Mapping[str, int] = {
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
    "KB": 1000,  # a common spelling of kB; after it, so that kB is what we write
}
DURATION_UNITS: Mapping[str, Decimal] = {
    "s": Decimal(1),  # before the others: among texts of one length, seconds are what we write
    "ms": Decimal("0.001"),
    "us": Decimal("0.000001"),
    "min": Decimal(60),
    "h": Decimal(3600),
}
BIT_RATE_UNITS: Mapping[str, int] = {"kbit": 1000, "mbit": 1000**2, "gbit": 1000**3}  # per second, as tc(8) writes them
LONGEST_TEXT = 12  # a text longer than this reads worse than the number


def parse_size(text: str) -> int:
    """The bytes that ``text`` names: ``25MiB`` or ``64kB``. Lower-case ``b``, which may mean bits, is refused.

    Raises:
        ValueError: for another form, an unknown unit, or a fraction of a byte.
    """
    amount, unit = _split(text, SIZE_UNITS, "a size such as 25MiB, 64kB or a number of bytes")
    size = amount * SIZE_UNITS[unit]
    if size != int(size):
        raise ValueError("must be a whole number of bytes")
    return int(size)


def parse_duration(text: str) -> float:
    """The seconds that ``text`` names: ``50ms``, ``300s`` or ``5min``.

    Raises:
        ValueError: for another form or an unknown unit.
    """
    amount, unit = _split(text, DURATION_UNITS, "a duration such as 50ms, 300s, 5min or a number of seconds")
    return float(amount * DURATION_UNITS[unit])


def parse_bit_rate(text: str) -> int:
    """The bits per second that ``text`` names: ``100mbit`` or ``2.5gbit``. Units are decimal; bytes per second are refused.

    Raises:
        ValueError: for another form, an unknown unit, zero, or a fraction of a bit.
    """
    amount, unit = _split(text, BIT_RATE_UNITS, "a bit rate such as 100mbit, 2.5gbit or 500kbit")
    rate = amount * BIT_RATE_UNITS[unit]
    if rate != int(rate) or rate == 0:
        raise ValueError("must be a whole number of bits per second, more than 0")
    return int(rate)


def format_bit_rate(rate: int) -> str:
    """The shortest text that reads back as exactly ``rate`` bits per second."""
    return min((f"{_plain(Decimal(rate) / factor)}{unit}" for unit, factor in BIT_RATE_UNITS.items()), key=len)


def format_size(size: int) -> str | int:
    """The shortest text for ``size`` bytes; the number itself where no unit divides it."""
    texts = [f"{size // factor}{unit}" for unit, factor in SIZE_UNITS.items() if factor > 1 and size % factor == 0]
    return min(texts, key=len) if size and texts else size


def format_duration(seconds: float) -> str | float:
    """The shortest text that reads back as exactly ``seconds``; the number itself where that is long."""
    amounts = {unit: Decimal(repr(abs(seconds))) / factor for unit, factor in DURATION_UNITS.items()}
    texts = [f"{_plain(amount)}{unit}" for unit, amount in amounts.items()]
    exact = [text for text in texts if len(text) <= LONGEST_TEXT and parse_duration(text) == seconds]
    return min(exact, key=len, default=seconds)


def _split(text: str, units: Mapping[str, Any], expected: str) -> tuple[Decimal, str]:
    """The amount and the unit in ``text``."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"must be {expected}")
    if match[2] not in units:
        raise ValueError(f"must be {expected}; known units: {', '.join(units)}")
    return Decimal(match[1]), match[2]


def _plain(amount: Decimal) -> str:
    """``amount`` without exponent and without trailing zeros."""
    return f"{amount.normalize():f}"


def _read_size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _read_duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


Size = Annotated[
    int, Field(ge=0), BeforeValidator(_read_size), PlainSerializer(format_size, return_type=str | int, when_used="json")
]
"""Bytes: an int in code, ``25MiB`` or a whole number in a file."""

Duration = Annotated[
    float,
    Field(ge=0),
    BeforeValidator(_read_duration),
    PlainSerializer(format_duration, return_type=str | float, when_used="json"),
]
"""Seconds: a float in code, ``50ms`` or a number in a file."""
