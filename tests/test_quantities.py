"""Sizes, durations and bit rates read what people write, refuse what is ambiguous, and come back from their text exactly."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from disttrain.component import Config
from disttrain.quantities import (
    Duration,
    Size,
    format_bit_rate,
    format_duration,
    format_size,
    parse_bit_rate,
    parse_duration,
    parse_size,
)


class Link(Config):
    bucket: Size = 25 * 2**20
    delay: Duration = Field(0.05, gt=0)


@pytest.mark.parametrize(
    ("text", "size"),
    [("25MiB", 25 * 2**20), ("64kB", 64_000), ("64KB", 64_000), ("1.5 GiB", 3 * 2**29), ("7B", 7), ("2TB", 2 * 10**12)],
)
def test_decimal_and_binary_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("300s", 300.0), ("5min", 300.0), ("1.5 h", 5400.0), ("10us", 1e-5)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "rate"), [("100mbit", 10**8), ("2.5 gbit", 25 * 10**8), ("1kbit", 1000), ("0.064mbit", 64_000)])
def test_bit_rates(text, rate):
    assert parse_bit_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "100", "100mb", "100Mbit", "100mbit/s", "0mbit", "-1mbit", "0.0001kbit", "1e3kbit", "100MB"]
)
def test_what_is_no_bit_rate_is_refused(text):
    with pytest.raises(ValueError, match="must be a"):
        parse_bit_rate(text)


@pytest.mark.parametrize("text", ["", "MiB", "5", "-5MiB", "5 parsecs", "100mb", "5MiB/s", "٥MiB", "1e3kB", "0.3B"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="must be a"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "s", "5", "-5s", "5 weeks", "12:30", "5 M", "infs", "nan s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="must be a duration such as 50ms"):
        parse_duration(text)


@given(st.one_of(st.integers(0, 2**70), st.integers(0, 10**4).map(lambda n: n * 2**20)))
def test_a_size_reads_back_as_itself(size):
    text = format_size(size)
    assert size == (parse_size(text) if isinstance(text, str) else text)


@given(st.one_of(st.floats(0, allow_infinity=False), st.integers(0, 10**6).map(lambda n: n / 1000)))
def test_a_duration_reads_back_as_itself(seconds):
    text = format_duration(seconds)
    assert seconds == (parse_duration(text) if isinstance(text, str) else text)


@given(st.one_of(st.integers(1, 10**13), st.integers(1, 10**5).map(lambda n: n * 10**6)))
def test_a_bit_rate_reads_back_as_itself(rate):
    assert parse_bit_rate(format_bit_rate(rate)) == rate


def test_the_shortest_text_is_written():
    assert [format_bit_rate(rate) for rate in (64_000, 10**8, 25 * 10**8, 10**10)] == ["64kbit", "100mbit", "2.5gbit", "10gbit"]
    assert [format_size(size) for size in (0, 999, 64_000, 2**20, 25 * 2**20)] == [0, 999, "64kB", "1MiB", "25MiB"]
    assert [format_duration(t) for t in (0.0, 0.05, 300.0, 3600.0, 1 / 3)] == ["0s", "50ms", "300s", "1h", 1 / 3]


def test_fields_take_text_or_numbers_and_serialise_to_text():
    read = Link.model_validate_json('{"bucket": 64000, "delay": 2}')
    assert (read.bucket, read.delay) == (64_000, 2.0)
    assert json.loads(read.model_dump_json()) == {"bucket": "64kB", "delay": "2s"}
    assert Link().model_dump() == {"bucket": 25 * 2**20, "delay": 0.05}
    assert Link.model_validate_json(Link().model_dump_json()) == Link()


@pytest.mark.parametrize("value", [True, None, [], {}, -1, "-1s", "1mb", 1e400, "9" * 400 + "h"])
def test_fields_refuse_what_is_neither(value):
    for name in ("bucket", "delay"):
        with pytest.raises(ValidationError):
            Link.model_validate_json(json.dumps({name: value}))


def test_bounds_apply_to_the_value_in_code_units():
    with pytest.raises(ValidationError, match="greater than 0"):
        Link.model_validate_json('{"delay": "0ms"}')
