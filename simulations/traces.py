"""Where CO2's exchange hides, and what DDP waits for: traces of both over a thin link, as pictures.

    python simulations/traces.py [--bandwidth 100mbit] [--step-time 100ms] [--keep FOLDER]

Needs Linux and root. Two workers exchange the quickstart's 0.78 M parameters over links of --bandwidth; forward and backward
take --step-time and no processor, so that other work on the machine does not show. Draws docs/trace_co2.png and
docs/trace_ddp.png from the two runs' trace.json, and prints what was waited for; --keep keeps the runs. About a minute.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from disttrain.recording.report.figures import LOOK
from disttrain.recording.report.timeline import Bar, draw_timeline, read_trace, steps_of

ROOT = Path(__file__).parents[1]
PERIOD = 6
RUNS = {
    "co2": ["configs/co2.yaml", f"strategy.period={PERIOD}", "strategy.warmup_rounds=0"],
    "ddp": ["configs/quickstart.yaml", "strategy.name=ddp"],
}
"""Config and settings."""
STEPS, FIRST_TRACED, TRACED = 40, 12, 20
SHOWN = {"co2": (0, 2 * PERIOD), "ddp": (0, 3)}
"""First and last of the traced steps that the picture shows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", default="100mbit")
    parser.add_argument("--step-time", default="100ms")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in RUNS:
            bars = read_trace(emulate(name, options, options.keep or Path(temporary)))
            draw(name, bars)
            print(describe(name, bars), flush=True)


def emulate(name: str, options: argparse.Namespace, parent: Path) -> Path:
    """One run; its trace."""
    config, *settings = RUNS[name]
    folder = parent / name
    tracing = ["recording.trace=true", f"recording.trace_from={FIRST_TRACED}", f"recording.trace_steps={TRACED}"]
    command = [sys.executable, "-m", "disttrain.cli", "emulate", str(ROOT / config), "--workers", "2"]
    command += ["--bandwidth", options.bandwidth, "--step-time", options.step_time, *settings, *tracing]
    command += [f"training.steps={STEPS}", f"run.directory={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
    return folder / "trace.json"


def draw(name: str, bars: Sequence[Bar]) -> None:
    """docs/trace_NAME.png."""
    with rc_context(LOOK):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        draw_timeline(figure.subplots(), bars, steps_of(bars, *SHOWN[name]), (0, 1))
        figure.savefig(ROOT / "docs" / f"trace_{name}.png", dpi=110)


def describe(name: str, bars: Sequence[Bar]) -> str:
    """Of rank 0: how long an exchange took, how long it waited for it in a step, and what of the exchange was under its work."""
    own = [bar for bar in bars if bar.rank == 0]
    rows = ("all-reduce", "all-reduce (2)", "lane deltas")
    exchanged = [bar for bar in own if bar.row in rows and "0.00 MB" not in bar.name]
    steps, waits = ([bar for bar in own if bar.row == row] for row in ("step", "exposed communication"))
    each, step, wait = (milliseconds(some) / len(many) for some, many in ((exchanged, exchanged), (steps, steps), (waits, steps)))
    hidden = 1 - 1e3 * overlap(exchanged, waits) / milliseconds(exchanged)
    text = f"{name}: {len(exchanged)} exchanges of {each:.0f} ms in {len(steps)} steps of {step:.0f} ms; rank 0 waits "
    return text + f"{wait:.1f} ms a step, and works during {hidden:.0%} of an exchange"


def milliseconds(bars: Sequence[Bar]) -> float:
    """Of all of them."""
    return 1e3 * sum(bar.end - bar.start for bar in bars)


def overlap(some: Sequence[Bar], others: Sequence[Bar]) -> float:
    """Seconds in which both go on."""
    return sum(max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a in some for b in others)


if __name__ == "__main__":
    main()
