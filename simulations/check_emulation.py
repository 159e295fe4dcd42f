"""Does `disttrain emulate` give the network that it promises? Runs DDP over shaped links and prints promise and measurement.

    sudo python simulations/check_emulation.py [--workers 2] [--steps 60]

For 100 and 10 Mbit/s: the calibrated bandwidth against the nominal one; the time of a step against compute plus bytes by
measured bandwidth; the bytes at the interface against ``wire_bytes``. Compute is emulated in one table and real in another, for
which a run without communication on the same workers says what compute takes: on a busy machine the two runs differ. Then a
link is cut for 5 s, a worker is frozen, and the command is killed; what becomes of the run, and what is left of it on the
machine, is printed. Takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from disttrain.recording.metrics import read_metrics

# 0.44 MB of gradients: one bucket of DDP, so that no communication overlaps backward.
CONFIG = """
model: {name: plm, width: 64, layers: 2, heads: 2}
data: {name: python_source, sequence_length: 32, max_bytes: 400kB, validation_ratio: 0.2}
optimizer: {name: sgd, lr: 0.1}
training: {batch_size: 8, validate_every: 0, validation_batches: 2}
recording: {log_every: 1}
"""
STEP_SECONDS = 0.05
REAL = ("training.batch_size=64",)  # some 30 ms of real compute, beside which DDP's own milliseconds are few


def main() -> None:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(CONFIG)
        for compute in ("emulated", "real"):
            links(compute, options, folder)
        broken(options, folder)
        killed(options, folder)


def links(compute: str, options: argparse.Namespace, folder: Path) -> None:
    """One table: nominal and measured bandwidth, predicted and measured step, counted and seen bytes."""
    print(f"\n{compute} compute, ddp, {options.workers} workers, {options.steps} steps: medians over steps")
    print(f"{'link':>8} {'measured':>12} {'of nominal':>10} {'compute':>9} {'bytes/bandwidth':>16} {'predicted':>10} "
          f"{'step':>9} {'step/predicted':>14} {'interface/wire':>14}")  # fmt: skip
    for bandwidth in ("100mbit", "10mbit"):
        arguments = ("--step-time", f"{STEP_SECONDS}s") if compute == "emulated" else REAL
        run = folder / f"{compute}-{bandwidth}"
        emulate(run, bandwidth, options, *arguments)
        report, records = json.loads((run / "emulation.json").read_text()), list(read_metrics(run / "metrics.jsonl"))
        computing = emulated_compute(records) if compute == "emulated" else alone(folder, bandwidth, options)
        step, communication = median_step(records), report["predicted_communication_seconds"]
        measured, nominal = report["measured_bits_per_second"], report["nominal_bits_per_second"]
        predicted = computing + communication
        print(f"{bandwidth:>8} {measured / 1e6:>5.2f} Mbit/s {measured / nominal:>10.1%} {milliseconds(computing)} "
              f"{milliseconds(communication):>16} {milliseconds(predicted):>10} {milliseconds(step)} {step / predicted:>14.3f} "
              f"{report['interface_sent_bytes'] / report['wire_bytes']:>14.4f}")  # fmt: skip


def emulated_compute(records: list[dict[str, Any]]) -> float:
    """Seconds of forward and backward, which sleep, and of the optimizer, which does not."""
    steps = records[-1]["step"] - records[0]["step"]
    return STEP_SECONDS + float(records[-1]["optimizer_seconds"] - records[0]["optimizer_seconds"]) / steps


def alone(folder: Path, bandwidth: str, options: argparse.Namespace) -> float:
    """Median step of the same workers when they exchange nothing."""
    run = folder / f"alone-{bandwidth}"
    emulate(run, bandwidth, options, "strategy.name=local", *REAL)
    return median_step(list(read_metrics(run / "metrics.jsonl")))


def broken(options: argparse.Namespace, folder: Path) -> None:
    """A cut that is mended, one that is not, and a frozen worker: the run goes on, or ends with one message."""
    print("\nddp with launch.timeout=10s, when after 1 s …")
    scripts = {
        "a link is cut for 5 s": "- {at: 1s, cut: 1}\n- {at: 6s, restore: 1}\n",
        "a link is cut for ever": "- {at: 1s, cut: 1}\n",
        "a worker freezes": "- {at: 1s, freeze: 1}\n",
        "a worker is killed": "- {at: 1s, kill: 1}\n",
    }
    for number, (what, script) in enumerate(scripts.items()):
        events, run = folder / f"{number}.yaml", folder / f"broken-{number}"
        events.write_text(script)
        done = emulate(run, "100mbit", options, "--step-time", f"{STEP_SECONDS}s", "--events", str(events), "launch.timeout=10s")
        how = "goes on to its end" if done.returncode == 0 else f"ends with code {done.returncode}: {done.stderr.splitlines()[0]}"
        print(f"  {what}: the run {how}")


def killed(options: argparse.Namespace, folder: Path) -> None:
    """SIGKILL to the command, with a worker frozen: what is left a second later."""
    events, run, before = folder / "frozen.yaml", folder / "killed", machine()
    events.write_text("- {at: 500ms, freeze: 1}\n")
    command = subprocess.Popen([*arguments_of(run, "100mbit", options), "--events", str(events)], stdout=subprocess.DEVNULL)
    while not (run / "events.jsonl").exists() and command.poll() is None:
        time.sleep(0.05)
    during = machine()
    command.send_signal(signal.SIGKILL)
    command.wait()
    time.sleep(1.0)
    print("\nkill -9 of the command while a worker is frozen: before, during, a second after")
    for (what, a), b, c in zip(before.items(), during.values(), machine().values(), strict=True):
        print(f"  {what}: {a}, {b}, {c}")


def machine() -> dict[str, int]:
    """How much of what an emulation makes there is on this machine, other emulations' included."""
    namespaces = subprocess.run(["lsns", "--noheadings", "-t", "net", "-o", "NS"], capture_output=True, text=True, check=True)
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    processes = [each for each in commands if b"disttrain.worker" in each or b"disttrain.emulation" in each]
    return {
        "network namespaces": len(namespaces.stdout.split()),
        "links": len(links.stdout.splitlines()),
        "processes": len(processes),
    }


def emulate(run: Path, bandwidth: str, options: argparse.Namespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`disttrain emulate` to its end, in a new folder."""
    return subprocess.run([*arguments_of(run, bandwidth, options), *arguments], capture_output=True, text=True)


def arguments_of(run: Path, bandwidth: str, options: argparse.Namespace) -> list[str]:
    """The command line."""
    command = [sys.executable, "-m", "disttrain.cli", "emulate", str(run.parent / "config.yaml"), f"run.directory={run}"]
    return [*command, "--workers", str(options.workers), "--bandwidth", bandwidth, f"training.steps={options.steps}"]


def median_step(records: list[dict[str, Any]]) -> float:
    """Seconds of a step, the first left out."""
    return statistics.median(after["seconds"] - before["seconds"] for before, after in pairwise(records))


def milliseconds(seconds: float) -> str:
    """Aligned in a column."""
    return f"{seconds * 1e3:>6.1f} ms"


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("check_emulation.py: needs root, as `disttrain emulate` does")
    main()
