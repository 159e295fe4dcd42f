"""A trace keeps the steps it is asked for, no more than memory allows, and no row has two things at once."""

import json
import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import disttrain.worlds.trace as tracing
from disttrain.recording.folder import RunFolder
from disttrain.recording.report.timeline import read_trace, steps_of
from disttrain.recording.trace import TOUCHING, join_parts, write_part
from disttrain.worlds.trace import Trace
from disttrain.worlds.traffic import EXPOSED, Traffic


def fill(trace, steps, begun_after=0):
    trace.begin(begun_after)
    for step in range(begun_after + 1, begun_after + steps + 1):
        now = time.perf_counter()
        trace.add("compute", f"of step {step}", now - 1e-3, now)
        trace.end_step(step)


@pytest.mark.parametrize(
    ("first", "steps", "begun_after", "expected"), [(0, 2, 0, [1, 2]), (2, 3, 0, [3, 4, 5]), (0, 6, 4, [5, 6])]
)
def test_only_the_window_is_kept(first, steps, begun_after, expected):
    trace = Trace(first, steps)
    fill(trace, 8, begun_after)
    assert [span.name for span in trace.spans if span.row == "compute"] == [f"of step {step}" for step in expected]


def test_memory_is_bounded_and_what_is_dropped_is_counted(monkeypatch):
    monkeypatch.setattr(tracing, "MOST_SPANS", 5)
    trace = Trace(0, 100)
    for start in range(8):
        trace.add("lane", "job", start, start + 1)
    assert len(trace.spans) == 5
    assert trace.dropped == 3


def test_a_wait_is_a_span_that_ends_now_and_is_in_no_checkpoint():
    traffic = Traffic(trace=Trace(0, 1))
    traffic.expose(0.25, "the mean")
    (span,) = traffic.trace.spans
    assert (span.row, span.name) == (EXPOSED, "the mean")
    assert span.end - span.start == pytest.approx(0.25)
    assert set(traffic.state()) == {"payload_bytes", "wire_bytes", "exposed_seconds", "collectives"}
    json.dumps(traffic.state())


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 10), st.floats(1e-5, 5)), min_size=1, max_size=40))
@example([("a", 0.0, 0.7734570482107418), ("a", 0.7734570482107418, 2.1533375181810332)])
def test_no_row_of_the_file_has_two_things_at_once(tmp_path_factory, spans):
    path, trace = tmp_path_factory.mktemp("trace"), Trace(0, 1)
    for row, start, seconds in spans:
        trace.add(row, "x", start, start + seconds)
    write_part(path / "parts", 0, trace)
    assert join_parts(path / "parts", [0], RunFolder(path)) == []
    bars = read_trace(path / "trace.json")
    assert len(bars) == len(spans)
    for row in {bar.row for bar in bars}:
        own = sorted((bar for bar in bars if bar.row == row), key=lambda bar: bar.start)
        assert all(before.end <= after.start + 1e-8 for before, after in pairwise(own))
    whole, kept = sum(seconds for _, _, seconds in spans), sum(bar.end - bar.start for bar in bars)
    assert whole - TOUCHING * len(spans) - 1e-6 <= kept <= whole + 1e-6
    assert not (path / "parts").exists()


def test_a_worker_whose_part_never_comes_is_named_and_the_others_are_shown(tmp_path):
    trace = Trace(0, 3)
    fill(trace, 3)
    write_part(tmp_path / "parts", 1, trace)
    assert join_parts(tmp_path / "parts", [0, 1], RunFolder(tmp_path), patience=0.1) == [0]
    bars = read_trace(tmp_path / "trace.json")
    assert {bar.rank for bar in bars} == {1}
    begin, end = steps_of(bars, 0, 2)
    assert end > begin


def test_clocks_of_processes_are_joined_by_the_time_of_day(tmp_path):
    early, late = Trace(0, 1), Trace(0, 1)
    late.epoch = early.epoch + 2.0  # its perf_counter was started two seconds later
    for rank, trace in enumerate((early, late)):
        trace.add("compute", "x", 1.0, 1.5)
        write_part(tmp_path / "parts", rank, trace)
    join_parts(tmp_path / "parts", [0, 1], RunFolder(tmp_path))
    starts = {bar.rank: bar.start for bar in read_trace(tmp_path / "trace.json")}
    assert starts[1] - starts[0] == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("text", ["", "[]", '{"traceEvents": [{"ph": "X"}]}', '{"traceEvents": 3}'])
def test_what_is_no_trace_is_refused(tmp_path, text):
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(ValueError, match="is no trace"):
        read_trace(tmp_path / "trace.json")
