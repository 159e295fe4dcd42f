"""The report's figures follow from the records, whatever interval they were logged at."""

import pytest

from disttrain.emulation.report import lines, readable_bits, steps


def record(step, seconds, exposed):
    return {
        "step": step, "seconds": seconds, "exposed_seconds": exposed, "wire_bytes": 1000 * step,
        "interface_sent_bytes": 1010 * step, "interface_received_bytes": 1020 * step,
    }  # fmt: skip


RECORDS = [record(10, 9.0, 8.0), record(20, 10.0, 8.4), record(40, 12.0, 9.2), record(50, 15.0, 9.6)]
FACTS = {
    "workers": 2, "compute": "emulated", "nominal": "1mbit", "measured_bits_per_second": 160e3, "calibration_seconds": [1.5],
    "restarts": 0, "wall_seconds": 20.0,
}  # fmt: skip


def test_a_step_is_the_median_over_intervals_and_what_is_not_exposed_of_it_is_compute():
    facts = steps(RECORDS, 160e3)
    assert facts["median_step_seconds"] == pytest.approx(0.1)
    assert facts["compute_seconds"] == pytest.approx(0.06)
    assert facts["exposed_seconds"] == pytest.approx(0.04)
    assert facts["exposed_share"] == pytest.approx(9.6 / 15)
    assert facts["predicted_communication_seconds"] == pytest.approx(1000 * 8 / 160e3)
    assert (facts["steps"], facts["wire_bytes"], facts["interface_received_bytes"]) == (50, 50_000, 51_000)


def test_too_little_is_not_reported():
    assert steps(RECORDS[:1], 160e3) == {} == steps([], None)
    assert lines(FACTS | steps([], None)) == ["emulated         2 workers, links 1mbit, measured 160 kbit/s; compute is emulated"]


def test_a_restart_is_told_with_the_time_that_it_cost():
    assert not any(line.startswith("restarts") for line in lines(FACTS))
    (line,) = (line for line in lines(FACTS | {"restarts": 2}) if line.startswith("restarts"))
    assert "2; 20.0 s from the first start to the end" in line


def test_a_gpus_unknown_waiting_is_not_made_up():
    facts = steps([each | {"exposed_seconds": None} for each in RECORDS], 160e3)
    assert not [key for key in facts if key.startswith(("exposed", "compute"))]
    assert "100.0 ms by the median" in "\n".join(lines(FACTS | facts))


def test_one_worker_has_no_prediction():
    text = "\n".join(lines(FACTS | {"measured_bits_per_second": None, "workers": 1} | steps(RECORDS, None)))
    assert "measured" not in text
    assert "100.0 ms by the median" in text


def test_the_lines_say_what_compute_is_and_how_bytes_compare():
    text = "\n".join(lines(FACTS | steps(RECORDS, 160e3)))
    for words in (
        "compute is emulated",
        "50.0 ms at the measured bandwidth",
        "1.010 of what wire_bytes says",
        "64.0% of the run",
    ):
        assert words in text


@pytest.mark.parametrize(("rate", "text"), [(94.72e6, "94.7 Mbit/s"), (1.2e9, "1.2 Gbit/s"), (512.0, "0.512 kbit/s")])
def test_bit_rates_are_readable(rate, text):
    assert readable_bits(rate) == text
