"""What simulating workers as rows gains over a loop of separate modules, and how much memory it takes of what it announces.

    python simulations/bench_simulation.py [--workers 1000] [--rounds 7]

The loop is what one would write by hand: a module and an optimizer for each worker, one after the other. Both train the
4,810-parameter MLP on digits by SGD with momentum and clipping, and take turns in one process, on all threads. Prints medians
and their ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disttrain.config import LoadedConfig, load_config
from disttrain.launch.shutdown import StopRequest
from disttrain.launch.start import start_cpu
from disttrain.recording.folder import RunFolder
from disttrain.simulation.gradients import Method
from disttrain.simulation.run import SimulateOptions, Simulation

CONFIG = """
model: {name: mlp}
data: {name: digits}
objective: {name: classification}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
strategy: {name: local}
training: {steps: 1000000, batch_size: 16000, validate_every: 0}
"""


def main() -> None:
    """Measure speed here, and memory in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each")
    parser.add_argument("--memory-of", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of is not None:
        measure_memory(options.workers, options.memory_of)
        return
    start_cpu(None, 1)
    print(f"{options.workers} workers, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    print(f"{'strategy':<10} {'batch':>5} {'gradients':>10} {'rows':>18} {'loop':>18} {'ratio':>6}")
    for strategy, batch in (("local", 1), ("local", 16), ("local", 64), ("ddp", 16)):
        measure_speed(strategy, batch, options.workers, options.rounds)
    for overrides in (
        [],
        ["strategy.name=ddp"],
        ["strategy.name=ddp_cast"],
        ["model.hidden=[256, 256]"],
        ["model.hidden=[256, 256]", "optimizer.name=adamw"],
    ):
        command = [sys.executable, __file__, "--workers", str(options.workers), "--memory-of", *overrides]
        subprocess.run(command, check=True)


def prepare(workers: int, overrides: list[str], folder: Path, gradients: Method | None = None) -> Simulation:
    """A simulation of the config above, with the fastest or the given way to compute gradients."""
    (folder / "bench.yaml").write_text(CONFIG)
    loaded: LoadedConfig = load_config(folder / "bench.yaml", overrides)
    run_folder = RunFolder(folder / "run")
    run_folder.claim(resume=True)
    with contextlib.redirect_stdout(io.StringIO()):  # what a run says at its start
        return Simulation(loaded, SimulateOptions(workers, gradients=gradients), run_folder, StopRequest())


def measure_speed(strategy: str, batch: int, workers: int, rounds: int) -> None:
    """Let rows and loop take turns of one step of all workers."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"training.batch_size={workers * batch}", f"strategy.name={strategy}"]
        simulation = prepare(workers, overrides, Path(folder))
        loop = separate_modules(simulation, workers, average=strategy == "ddp")
        seconds: dict[str, list[float]] = {"rows": [], "loop": []}
        variants: dict[str, Callable[[], None]] = {"rows": simulation.step, "loop": loop}
        for turn in range(rounds + 1):
            for name, variant in variants.items():
                start = time.perf_counter()
                variant()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    rows, by_hand = (statistics.median(seconds[name]) for name in ("rows", "loop"))
    ratio = statistics.median(b / a for a, b in zip(seconds["rows"], seconds["loop"], strict=True))
    speeds = f"{workers / rows:>10,.0f} steps/s {workers / by_hand:>10,.0f} steps/s"
    print(f"{strategy:<10} {batch:>5} {simulation.choice.method:>10} {speeds} {ratio:>6.1f}", flush=True)


def separate_modules(simulation: Simulation, workers: int, average: bool) -> Callable[[], None]:
    """One step of every worker, by plain torch; ``average``: with all gradients' mean, as under DDP."""
    modules = [nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)) for _ in range(workers)]
    optimizers = [torch.optim.SGD(module.parameters(), 0.05, momentum=0.9) for module in modules]
    inputs, targets = simulation.microbatches(0)[0]

    def step() -> None:
        for module, x, y in zip(modules, inputs, targets, strict=True):
            module.zero_grad()
            F.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
        if average:
            for same in zip(*(module.parameters() for module in modules), strict=True):
                mean: Tensor = torch.stack([p.grad for p in same]).mean(0)  # type: ignore[misc]
                for parameter in same:
                    parameter.grad = mean.clone()
        for module, optimizer in zip(modules, optimizers, strict=True):
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()

    return step


def measure_memory(workers: int, overrides: list[str]) -> None:
    """The peak of this process's memory above what it had before, against the forecast."""
    with tempfile.TemporaryDirectory() as folder:
        warm = prepare(2, [*overrides, "training.batch_size=32"], Path(folder))  # libraries, kernels, data
        warm.step()
        before = resident_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
        simulation = prepare(workers, [*overrides, f"training.batch_size={16 * workers}"], Path(folder))
        for _ in range(3):
            simulation.step()
        used, forecast = resident_bytes("VmHWM") - before, simulation.memory
    name = ", ".join(overrides) or "strategy.name=local"
    print(f"memory ({name}): {used / 1e6:,.0f} MB used, {forecast.total_bytes / 1e6:,.0f} MB announced, "
          f"ratio {used / forecast.total_bytes:.2f}")  # fmt: skip


def resident_bytes(key: str) -> int:
    """A line of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


if __name__ == "__main__":
    main()
