"""Bandwidths read what people write, and shapers get buckets that fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.emulation.bandwidth import LEAST, Link, describe, parse_links
from disttrain.emulation.calibration import LEAST_BYTES, MOST_BYTES, SECONDS_EACH, payload_bytes
from disttrain.emulation.network import bucket_bytes, segment_bytes
from disttrain.worlds.traffic import all_reduce_wire_bytes

FAST, SLOW, LOPSIDED = Link(down=10**8, up=10**8), Link(down=10**7, up=10**7), Link(down=10**8, up=10**7)
HEADERS, PACKET = 66, 1514


@pytest.mark.parametrize(
    ("spec", "links"),
    [
        ("100mbit", (FAST, FAST, FAST)),
        ("100mbit/10mbit", (LOPSIDED, LOPSIDED, LOPSIDED)),
        ("100mbit,100mbit/10mbit,10mbit", (FAST, LOPSIDED, SLOW)),
    ],
)
def test_one_bandwidth_is_for_all_and_several_are_one_each(spec, links):
    assert parse_links(spec, 3) == links
    assert describe(links) == spec


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("100mb", "must be a bit rate such as 100mbit"),
        ("100mbit,10mbit", "one for each of the 3 workers, not 2"),
        ("100mbit,10mbit,", "'' must be a bit rate"),
        ("100mbit/10mbit/1mbit", "must be a bit rate"),
        ("100mbit/", "must be a bit rate"),
        ("0mbit", "more than 0"),
        ("99kbit", "must be between 100kbit and 100gbit, or down/up such as 100mbit/10mbit"),
        ("100000gbit", "must be between 100kbit and 100gbit"),
    ],
)
def test_what_is_no_bandwidth_is_refused_with_what_is_allowed(spec, words):
    with pytest.raises(ValueError, match=words):
        parse_links(spec, 3)


@given(st.integers(LEAST, 10**11))
def test_the_largest_segment_fits_into_the_bucket_with_the_headers_of_all_its_packets(rate):
    segment = segment_bytes(rate)
    packets = -(-segment // (PACKET - HEADERS))
    assert PACKET < segment + packets * HEADERS <= max(bucket_bytes(rate), 65_536 * 1.05)


@given(st.lists(st.integers(LEAST, 10**10), min_size=2, max_size=9))
def test_the_calibration_takes_its_time_at_the_slowest_link(rates):
    links = [Link(down=rate, up=2 * rate) for rate in rates]
    payload = payload_bytes(links)
    seconds = all_reduce_wire_bytes(payload, len(links)) * 8 / min(rates)
    assert payload % 4 == 0
    assert seconds == pytest.approx(SECONDS_EACH, rel=1e-3) or payload in (LEAST_BYTES, MOST_BYTES)
