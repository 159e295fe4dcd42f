"""The arithmetic of gossip_overlap.py's and bench_gossip.py's tables, without any run."""

from dataclasses import replace

import bench_gossip
import gossip_overlap
import pytest
from emulated_runs import EmulatedRun

COMPUTE, BYTES, BITS_PER_SECOND = 0.2, 1_250_000, 1e8
M = 8 * BYTES / BITS_PER_SECOND


def run_of(waiting, load=1.0, num_bytes=BYTES):
    """Steps of 0.2 s that wait so long for the network."""
    records = [
        {"step": s, "tokens": s, "seconds": s * (COMPUTE + waiting), "exposed_seconds": s * waiting, "wire_bytes": s * num_bytes}
        for s in range(5, 45, 5)
    ]
    report = {"measured_bits_per_second": BITS_PER_SECOND, "interface_sent_bytes": 101, "wire_bytes": 100}
    return EmulatedRun(records, report, [load, 2 * load])


def row_of(hidden, waited, workers=2):
    return gossip_overlap.row(workers, "100mbit", [run_of(each) for each in hidden], [run_of(each, 3.0) for each in waited])


def test_a_row_is_of_the_median_repeat():
    row = row_of([0.0, 0.05, 0.3], [M, 1.02 * M, 5.0])
    assert row.communication == pytest.approx(M)
    assert row.compute == pytest.approx(COMPUTE)
    assert row.exchange == pytest.approx(1.02 * M)
    assert row.exposed == pytest.approx(0.05)
    assert row.exposed_share == pytest.approx(0.05 / (COMPUTE + 0.05))
    assert row.exposed_shares == pytest.approx([0, 0.05 / (COMPUTE + 0.05), 0.3 / (COMPUTE + 0.3)])
    assert row.load == [1.0, 6.0]


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, []),
        ({"wire_bytes": 1.01 * BYTES}, ["bytes"]),
        ({"interface": 1.04}, ["bytes"]),
        ({"exchange": 1.2 * M}, ["round"]),
        ({"exposed_share": 0.06}, ["overlap"]),
        ({"communication": 0.3, "exchange": 0.3, "exposed": 0.1, "exposed_share": 0.3}, []),
        ({"communication": 0.3, "exchange": 0.3, "exposed": 0.2, "exposed_share": 0.5}, ["overlap"]),
    ],
)
def test_what_does_not_hold_is_said(changes, failed, capsys):
    good = row_of([0.001], [M])
    verdicts = gossip_overlap.judge([good, replace(good, workers=4, **changes)])
    assert [each.split()[1].strip(":,") for each in verdicts if each.startswith("FAIL")] == failed
    assert capsys.readouterr().out.splitlines() == verdicts


def test_ratios_are_of_the_same_turn():
    turns = bench_gossip.Turns(step=[1.0, 4.0, 10.0], round=[0.5, 1.0, 6.0], bound=[0.25, 0.1, 2.0], schedule=[0.01, 0.02, 0.9])
    row = bench_gossip.Row.of(100, turns)
    assert row.times_the_bound == 3.0
    assert row.share_of_step == 0.5
    assert row.worker_steps_per_second == 25.0
    assert row.schedule_seconds == 0.02
