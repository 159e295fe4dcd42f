"""The arithmetic of emulated runs' records, and of overlap.py's table, without any run."""

from dataclasses import replace

import emulated_runs
import overlap
import pytest

PERIOD, COMPUTE, WAITING, DRAIN, CHECKPOINT = 8, 0.1, 0.4, 1.5, 7.0


def run_of(rounds):
    """Rounds of 8 steps of 0.1 s that wait 0.4 s at their end; the first also 5 s for its start, the last for drain and disk."""
    records, seconds, exposed = [], 5.0, 0.0
    for number in range(1, rounds + 1):
        last = number == rounds
        seconds += PERIOD * COMPUTE + WAITING + (DRAIN + CHECKPOINT if last else 0)
        exposed += WAITING + (DRAIN if last else 0)
        records.append({
            "step": number * PERIOD, "tokens": number * 1000, "seconds": seconds, "exposed_seconds": exposed,
            "wire_bytes": number * 500,
        })  # fmt: skip
    return emulated_runs.EmulatedRun(records, {"interface_sent_bytes": 2020, "wire_bytes": 2000}, [0.0, 0.0])


def test_a_steady_step_knows_neither_start_nor_end():
    run = run_of(6)
    assert run.step_seconds == pytest.approx(COMPUTE + WAITING / PERIOD)
    assert run.compute_seconds == pytest.approx(COMPUTE)
    assert run.exposed_seconds == pytest.approx(WAITING / PERIOD)
    assert run.wire_bytes == pytest.approx(500 / PERIOD)
    assert run.interface_ratio == 1.01


def test_a_run_that_sends_nothing_has_no_ratio_to_the_interface():
    run = run_of(6)
    silent = [record | {"wire_bytes": 10} for record in run.records]
    assert replace(run, records=silent).interface_ratio is None


def test_the_whole_has_the_drain_but_neither_start_up_nor_checkpoint():
    run = run_of(6)
    assert run.drain_seconds == pytest.approx(DRAIN)
    assert 5 * PERIOD * run.whole_step_seconds == pytest.approx(5 * (PERIOD * COMPUTE + WAITING) + DRAIN)


SYNCHRONOUS = [(bandwidth, 1 / (1 + 1e6 / bandwidth)) for bandwidth in (1e6, 4e6, 20e6)]  # C + M: straight in 1/bandwidth


@pytest.mark.parametrize(("target", "wanted"), [(0.6, "1.5"), (0.9, "9.0"), (0.99, "> 20"), (0.4, "< 1.0")])
def test_between_measured_points_a_synchronous_exchange_is_met_exactly(target, wanted):
    assert overlap.bandwidth_needed(SYNCHRONOUS, target) == wanted


@pytest.mark.parametrize("target", [0.55, 0.8, 0.95])
def test_what_overlaps_is_never_said_to_need_too_little(target):
    points = [(bandwidth, 1 / max(1, 8e6 / bandwidth)) for bandwidth in (4e6, 10e6, 20e6)]  # max(C, M)
    assert float(overlap.bandwidth_needed(points, target)) >= 8 * target


def test_no_point_reaches_the_target():
    assert overlap.bandwidth_needed([(5e6, 0.1), (380e6, 0.4)], 0.5) == "> 380"
