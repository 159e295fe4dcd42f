"""``disttrain report``: a page about runs that have ended, or still go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from disttrain.component import UserError
from disttrain.recording.folder import RunFolder
from disttrain.recording.report.page import write_report
from disttrain.recording.report.reading import read_runs

OF_SEVERAL = Path("runs/report.html")


def report_on(paths: Sequence[Path], output: Path | None) -> Path:
    """Write the page about some run folders; returns where it is: ``output``, else in the run's folder, or :data:`OF_SEVERAL`.

    Raises:
        UserError: if a folder holds no run, or the page cannot be written.
    """
    runs = read_runs(paths)
    target = output or (RunFolder(paths[0]).report if len(paths) == 1 else OF_SEVERAL)
    if target.is_dir():
        raise UserError(f"--output {target} is a folder: name a file, such as {target / 'report.html'}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_report(runs, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}; choose another place by --output") from None
    return target
