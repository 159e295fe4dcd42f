"""A traced run of real workers: rows for what each did, the wait where it is, and the very weights of an untraced one."""

import pytest

from disttrain.component import UserError
from disttrain.config import load_config
from disttrain.recording.report.timeline import read_trace
from tests.training.small_run import train, write_config


def traced(launched, tmp_path, *settings, name="run"):
    settings = ("training.steps=12", "checkpoint.every=0", "training.validate_every=0", *settings)
    results = launched(2, train, write_config(tmp_path), tmp_path / name, *settings, timeout=120)
    return results[0][0]


def seconds_in_both(some, others):
    return sum(max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a in some for b in others)


def test_ddp_waits_in_backward_and_both_ranks_are_shown(launched, tmp_path):
    digest = traced(launched, tmp_path, "recording.trace=true", "recording.trace_from=4", "recording.trace_steps=5")
    bars = read_trace(tmp_path / "run" / "trace.json")
    for rank in (0, 1):
        own = [bar for bar in bars if bar.rank == rank]
        assert [bar.name for bar in own if bar.row == "step"] == [f"step {step}" for step in range(5, 10)]
        assert [bar.name for bar in own if bar.row == "compute"] == ["data", "forward", "backward"] * 5
        assert sum(bar.row == "optimizer" and bar.name == "SGD" for bar in own) == 5
        waits = [bar for bar in own if bar.row == "exposed communication"]
        backward = [bar for bar in own if bar.name == "backward"]
        assert sum(seconds_in_both([each], waits) > 0 for each in backward) == 5
        assert any(bar.row == "all-reduce" for bar in own)
    assert not list((tmp_path / "run").glob(".trace-*"))
    assert digest == traced(launched, tmp_path, name="untraced")
    assert not (tmp_path / "untraced" / "trace.json").exists()


def test_a_lanes_jobs_are_on_its_own_row(launched, tmp_path):
    strategy = "strategy={name: co2, period: 4, warmup_rounds: 0}"
    traced(launched, tmp_path, strategy, "recording.trace=true")
    bars = read_trace(tmp_path / "run" / "trace.json")
    deltas = [bar for bar in bars if bar.row == "lane deltas" and bar.rank == 0]
    assert {bar.name for bar in deltas} == {"DeltaMean.average"}
    assert len(deltas) >= 2


def test_a_run_continued_beyond_the_window_keeps_its_trace(launched, tmp_path):
    config, tracing = write_config(tmp_path), ["recording.trace=true", "recording.trace_steps=3"]
    launched(1, train, config, tmp_path / "run", *tracing, "training.stop_after=10", timeout=120)
    before = (tmp_path / "run" / "trace.json").read_bytes()
    launched(1, train, config, tmp_path / "run", *tracing, "training.resume=auto", timeout=120)
    assert (tmp_path / "run" / "trace.json").read_bytes() == before


def test_a_window_after_the_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"trace_from must be below training\.steps=20"):
        load_config(write_config(tmp_path), ["recording.trace=true", "recording.trace_from=20"])
