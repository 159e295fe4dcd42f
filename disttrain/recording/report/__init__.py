"""One self-contained page about one run or several side by side; what a reader of the run folder sees first."""

from disttrain.recording.report.page import render, write_report
from disttrain.recording.report.reading import RunRecord, read_run, read_runs

__all__ = ["RunRecord", "read_run", "read_runs", "render", "write_report"]
