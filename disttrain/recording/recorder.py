"""Where a run's numbers go: file, screen, tracker and, at the end, summary and plot. Only worker 0 of a run folder writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from disttrain.recording.folder import RunFolder
from disttrain.recording.metrics import MetricsFile, finite_or_none
from disttrain.recording.plot import draw_pictures
from disttrain.recording.progress import Display, counted_things, readable_bytes, readable_seconds
from disttrain.recording.trackers import Tracker


class Recorder:
    """Takes each logged step's record, and the summary.

    Args:
        folder: the run folder.
        display: the console.
        trackers: that get the same.
    """

    def __init__(self, folder: RunFolder, display: Display, trackers: Sequence[Tracker] = ()) -> None:
        self._folder, self._display, self._trackers = folder, display, trackers
        self._metrics = MetricsFile(folder.metrics)
        self._unwritable: set[str] = set()
        self.last: dict[str, Any] = {}

    def forget_after(self, step: int) -> None:
        """Continue from ``step``: later records will be written again."""
        self.last = self._metrics.forget_after(step)

    def log(self, record: dict[str, Any], seconds_left: float | None = None) -> None:
        """One logged step."""
        self.last = record
        self._guard("metrics.jsonl", lambda: self._metrics.append(record))
        self._display.step(record, seconds_left)
        for tracker in self._trackers:
            tracker.log(record)

    def finish(self, summary: dict[str, Any], unit: str | None) -> None:
        """The run's end: ``summary.json``, the report, and the result on the screen."""
        self._display.close()
        self._folder.write_summary({key: finite_or_none(value) for key, value in (summary | {"unit": unit}).items()})
        self._draw()
        for tracker in self._trackers:
            tracker.finish(summary)
        for line in summary_lines(summary, unit):
            self._display.say(line)
        self._display.say(f"run folder       {self._folder.path}")
        if summary["status"] == "stopped" and summary.get("mode") != "simulated":  # which has no checkpoint
            self._display.say(f"to continue      training.resume=auto run.directory={self._folder.path}")

    def _draw(self) -> None:
        try:
            draw_pictures(self._folder)
        except Exception as error:  # whatever a picture lacks, the run is whole
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._display.say(f"warning: {self._folder.report.name} was not drawn ({reason})")

    def _guard(self, what: str, action: Callable[[], None]) -> None:
        """A record that cannot be written is said once; the training that it is about is worth more."""
        try:
            action()
        except OSError as error:
            if what not in self._unwritable:
                self._unwritable.add(what)
                self._display.say(f"warning: {what} is incomplete: {error}")


def summary_lines(summary: dict[str, Any], unit: str | None) -> list[str]:
    """What a person wants to know at the end, aligned."""
    seconds = summary["seconds"]
    tokens = f", {summary['tokens']:,} {counted_things(unit)}" if summary["tokens"] else ""
    things = "rounds" if "bytes_up" in summary else "steps"
    lines = [f"{summary['status']:<16} {summary['steps']} {things}{tokens} in {readable_seconds(seconds)}"]
    if summary.get("compute") == "emulated":
        lines.append("compute          emulated: nothing was learned, and no weights are exported")
    if summary["validation_loss"] is not None:
        lines.append(f"validation loss  {summary['validation_loss']:.4f}{f' nats per {unit}' if unit else ''}")
    if summary.get("validation_accuracy") is not None:
        lines.append(f"accuracy         {summary['validation_accuracy']:.1%} in validation")
    if seconds and summary["tokens"]:
        lines.append(f"speed            {summary['tokens'] / seconds:,.0f} {counted_things(unit)}/s")
    if "bytes_up" in summary:
        return [*lines, *_federated_lines(summary)]
    wire, ddp = summary["wire_bytes"], summary["ddp_wire_bytes"]
    saved = f", {1 - wire / ddp:.1%} less than torch DDP's {readable_bytes(ddp)}" if ddp > wire else ""
    lines.append(f"sent per worker  {readable_bytes(wire)}{saved}")
    if summary["exposed_seconds"] is not None and seconds:
        lines.append(f"exposed          {summary['exposed_seconds'] / seconds:.1%} of the time went into waiting for the network")
    return lines


def _federated_lines(summary: dict[str, Any]) -> list[str]:
    """The same of a federation."""
    scored = f", and losses of {summary['samples_scored']:,}" if summary["samples_scored"] else ""
    used, lost = summary["clients_used"], summary["clients_lost"]
    void = f", {summary['void_rounds']:,} rounds void" if summary["void_rounds"] else ""
    return [
        f"clients          {used:,} answers used, {lost:,} lost{void}",
        f"sent             up {readable_bytes(summary['bytes_up'])}, down {readable_bytes(summary['bytes_down'])}",
        f"gradients        {summary['gradient_evaluations']:,} of single samples{scored}",
        f"virtual time     {readable_seconds(summary['virtual_seconds'])}",
    ]
