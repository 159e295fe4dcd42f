"""The least period whose computation hides an exchange."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.strategies import suggest_period
from disttrain.worlds.traffic import all_reduce_wire_bytes


def test_by_hand():
    assert suggest_period(4 * 10**6, 2, 100e6, 0.05) == 7  # 32 Mbit take 0.32 s: 6.4 steps
    assert suggest_period(4 * 10**6, 1, 100e6, 0.05) == 1  # alone


@given(st.integers(1, 10**9), st.integers(2, 64), st.floats(1e5, 1e11), st.floats(1e-3, 10))
def test_it_is_the_least(payload_bytes, num_workers, bandwidth, step_seconds):
    period = suggest_period(payload_bytes, num_workers, bandwidth, step_seconds)
    seconds = 8 * all_reduce_wire_bytes(payload_bytes, num_workers) / bandwidth
    assert period * step_seconds >= seconds * (1 - 1e-9)
    assert period == 1 or (period - 1) * step_seconds < seconds * (1 + 1e-9)


def test_what_is_not_positive_is_named():
    with pytest.raises(ValueError, match="must be positive, got 4, 2, 0 and 1"):
        suggest_period(4, 2, 0, 1)
