"""What traces.py says of a trace, on one drawn by hand."""

import traces

from disttrain.recording.report.timeline import Bar


def bars(*spans):
    return [Bar(0, row, name, start, end) for row, name, start, end in spans]


def test_an_exchange_under_work_is_hidden_and_one_that_is_waited_for_is_not():
    steps = [("step", "step 1", 0.0, 1.0), ("step", "step 2", 1.0, 2.0)]
    hidden = bars(*steps, ("lane deltas", "mean", 0.0, 0.5))
    assert traces.describe("co2", hidden) == (
        "co2: 1 exchanges of 500 ms in 2 steps of 1000 ms; rank 0 waits 0.0 ms a step, and works during 100% of an exchange"
    )
    waited = bars(
        *steps, ("all-reduce", "3.10 MB", 0.5, 0.9), ("all-reduce", "0.00 MB", 1.0, 1.1), ("exposed communication", "x", 0.6, 0.9)
    )
    assert traces.describe("ddp", waited) == (
        "ddp: 1 exchanges of 400 ms in 2 steps of 1000 ms; rank 0 waits 150.0 ms a step, and works during 25% of an exchange"
    )


def test_overlap_is_symmetric_and_adds_up():
    one, other = bars(("a", "x", 0.0, 2.0), ("a", "x", 3.0, 4.0)), bars(("b", "x", 1.0, 3.5))
    assert traces.overlap(one, other) == traces.overlap(other, one) == 1.5
