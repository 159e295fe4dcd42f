"""What a person sees while a run goes: a bar on a terminal, one plain line per logged step elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table

PEAK_FLOPS = {  # dense bf16 FLOP/s of one device, from its data sheet; a device not listed gets no MFU rather than a guess
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA L4": 121e12,
}


class Display:
    """Worker 0's console; silent on the others.

    Args:
        total_steps: of the run.
        speaks: whether this worker prints.
        log: a file that gets every line too, a bar's steps as plain lines.

    Attributes:
        unit: of the data, where it is known: what speed is counted in.
    """

    def __init__(self, total_steps: int, speaks: bool, log: Path | None = None) -> None:
        self.console = Console(quiet=not speaks, soft_wrap=not sys.stdout.isatty(), highlight=False)
        self._total, self._log = total_steps, log if speaks else None
        self.unit: str | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if speaks and self.console.is_terminal:
            self._bar = Progress(BarColumn(30), TaskProgressColumn(), TextColumn("{task.description}"), console=self.console)

    def say(self, text: str) -> None:
        """A line that is no progress."""
        self.console.print(text, markup=False)
        self._keep(text)

    def _keep(self, text: str) -> None:
        if self._log is None:
            return
        try:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError:
            self._log = None  # it was on the screen

    def table(self, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """A small table, once."""
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        self._keep("\n".join("  ".join(row) for row in (columns, *rows)))

    def step(self, record: dict[str, Any], seconds_left: float | None) -> None:
        """A logged step."""
        line = progress_line(record, self._total, seconds_left, self.unit)
        if self._bar is None:
            self.say(line)
            return
        self._keep(line)
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total)
        self._bar.update(self._task, completed=record["step"], description=line)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def progress_line(record: dict[str, Any], total_steps: int, seconds_left: float | None = None, unit: str | None = None) -> str:
    """One logged step as a line: step, share, loss, accuracy and MFU where they are known, speed, bytes, time left."""
    step = record["step"]
    parts = [f"{'round' if 'bytes_up' in record else 'step'} {step}/{total_steps} ({step / total_steps:.0%})"]
    parts.append("compute emulated" if record.get("compute") == "emulated" else f"loss {_number(record['loss'])}")
    if record.get("validation_loss") is not None:
        parts.append(f"validation {_number(record['validation_loss'])}")
    if record.get("validation_accuracy") is not None:
        parts.append(f"accuracy {record['validation_accuracy']:.1%}")
    if record["tokens_per_second"]:
        parts.append(f"{record['tokens_per_second']:,.0f} {counted_things(unit)}/s")
    if record.get("mfu") is not None:
        parts.append(f"MFU {record['mfu']:.1%}")
    if "bytes_up" in record:
        parts.append(f"up {readable_bytes(record['bytes_up'])}, down {readable_bytes(record['bytes_down'])}")
    else:
        parts.append(f"sent {readable_bytes(record['wire_bytes'])}/worker")
    if seconds_left is not None:
        parts.append(f"{readable_seconds(seconds_left)} left")
    return "  ".join(parts)


def counted_things(unit: str | None) -> str:
    """What ``tokens`` in records and summaries counts, for people: bytes are tokens too, samples with classes are not."""
    return "samples" if unit == "sample" else "tokens"


def readable_bytes(count: float) -> str:
    """``1234567`` as ``1.2 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def readable_seconds(seconds: float) -> str:
    """``3725`` as ``1h02m``, ``65`` as ``1m05s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _number(value: float | None) -> str:
    return "not finite" if value is None or value != value else f"{value:.4f}"
