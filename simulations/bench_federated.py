"""Rounds per second of federated training: ours on each engine, a plain loop, and Flower's simulation.

    python simulations/bench_federated.py [--turns 3] [--rounds 10] [--only speed growth memory] [--without flower ray]

Speed: FedAvg of MLPs on digits, of 4,810 and of 80,730 parameters: 100 clients that own two shards each, 50 a round, ten local
steps of 16 samples. The plain loop is what one would write by hand: a module and torch.optim.SGD, loaded with the server's
parameters for each client, and the mean of what comes out. Flower has an environment of its own, runs/flower, which is made here
if it is not there: Flower, its Ray, and this environment's torch. All of ours have one thread; Flower and `ray` have as many
processes of one thread as there are CPUs. They take turns; medians over all rounds of all turns but each one's first two.
Start-up is not counted.

Growth: seconds of a round, and of the processor in it, with 100 to 10,000 clients of which 50 take part, batched, 4 samples each.
Memory: the peak of a process with 10,000 clients of the small model with SCAFFOLD's state.

Writes docs/federated_bench.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from emulated_runs import machine
from flower_app import build
from torch import Tensor

from disttrain.config import load_config
from disttrain.data import LabelledDataset
from disttrain.federated import SCALLION, Algorithm, Availability, BatchedEngine, FedAvg, Federation, Plan
from disttrain.launch.shutdown import StopRequest
from disttrain.launch.start import start_cpu
from disttrain.objectives import ClassificationConfig
from disttrain.recording.folder import RunFolder
from disttrain.recording.memory import peak_memory_bytes
from disttrain.simulation.federated.problem import ModelProblem
from disttrain.simulation.federated.run import FederatedRun

ROOT = Path(__file__).parents[1]
FLOWER = ROOT / "runs" / "flower"
HIDDEN = {"5k": [64], "80k": [256, 240]}
CLIENTS, COHORT, STEPS, BATCH, LR = 100, 50, 10, 16, 0.1
ENGINES = ("serial", "batched", "auto", "ray")
SIZES = (100, 300, 1000, 3000, 10_000)
WARM = 2
CONFIG = f"""
model: {{name: mlp}}
data: {{name: digits}}
partition: {{name: shards}}
objective: {{name: classification}}
launch: {{threads: 1}}
federated: {{clients: {CLIENTS}, cohort: {COHORT}, rounds: 1000000, local_steps: {STEPS}, batch_size: {BATCH}, lr: {LR}}}
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10, help="of each in a turn")
    parser.add_argument("--only", nargs="+", choices=("speed", "growth", "memory"), default=["speed", "growth", "memory"])
    parser.add_argument("--models", nargs="+", choices=HIDDEN, default=list(HIDDEN))
    parser.add_argument("--without", nargs="+", choices=("flower", "ray"), default=[])
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    start_cpu(1, 1)
    if options.memory:
        print(json.dumps(memory()))
        return
    path = ROOT / "docs" / "federated_bench.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    before = os.getloadavg()[0]
    for part in options.only:
        if part == "speed":
            measured = {name: speed(name, options.turns, options.rounds, options.without) for name in options.models}
            report[part] = report.get(part, {}) | measured
        elif part == "growth":
            report[part] = growth(options.turns, options.rounds)
        else:
            command = [sys.executable, __file__, "--memory"]
            report[part] = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=1200).stdout)
            print(f"memory: {report[part]['peak_bytes'] / 1e6:,.0f} MB, {report[part]['state_bytes'] / 1e6:,.0f} MB of it state")
        after = os.getloadavg()[0]
        report[f"{part}_load"], before = [before, after], after
        report["machine"] = machine()
        path.write_text(json.dumps(report, indent=1) + "\n")


# --- speed -------------------------------------------------------------------------------------------------------------


def speed(name: str, num_turns: int, rounds: int, without: list[str]) -> dict[str, Any]:
    """Median rounds per second of one model, by who runs them."""
    seconds: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        runs: dict[str, FederatedRun] = {}
        for engine in ENGINES:
            if engine not in without:
                runs[engine] = federated_run(HIDDEN[name], engine, Path(folder) / engine)
                stack.callback(runs[engine].close)
        problem = runs["serial"]._problem
        np.savez(Path(folder) / "data.npz", inputs=problem._dataset.inputs.numpy(), labels=problem._dataset.labels.numpy(),
                 samples=problem._samples.numpy(), sizes=problem.sizes.numpy())  # fmt: skip
        variants: dict[str, Callable[[], object]] = {engine: run.federation.step for engine, run in runs.items()}
        variants["loop"] = plain_loop(HIDDEN[name], problem)
        for _ in range(num_turns):
            for variant, step in variants.items():
                for wall, busy in timed(step, rounds):
                    seconds.setdefault(variant, []).append(wall)
                    processor.setdefault(variant, []).append(busy)
            if "flower" not in without:
                seconds.setdefault("flower", []).extend(flower(HIDDEN[name], Path(folder) / "data.npz", rounds))
    result = {variant: 1 / median(each) for variant, each in seconds.items()}
    print(f"{name}: " + ", ".join(f"{variant} {rate:.2f}" for variant, rate in result.items()) + " rounds/s", flush=True)
    busy_ms = {variant: 1e3 * median(each) for variant, each in processor.items() if variant != "ray"}
    print(f"{name}: " + ", ".join(f"{variant} {each:.1f}" for variant, each in busy_ms.items()) + " ms of the processor a round")
    for other in {"flower", "loop"} & result.keys():
        print(f"{name}: auto is {result['auto'] / result[other]:.1f} x {other}", flush=True)
    return {"parameters": sum(p.numel() for p in build(HIDDEN[name]).parameters()), "rounds_per_second": result,
            "processor_ms_per_round": busy_ms, "auto_took": runs["auto"].engine_name, "seconds": seconds}  # fmt: skip


def federated_run(hidden: list[int], engine: str, folder: Path) -> FederatedRun:
    """Set up as the command does."""
    folder.mkdir()
    (folder / "bench.yaml").write_text(CONFIG)
    settings = [f"model.hidden={hidden}", f"federated.engine={engine}"]
    run_folder = RunFolder(folder / "run")
    run_folder.claim(resume=False)
    with contextlib.redirect_stdout(io.StringIO()):
        return FederatedRun(load_config(folder / "bench.yaml", settings), run_folder, StopRequest())


def plain_loop(hidden: list[int], problem: ModelProblem) -> Callable[[], None]:
    """A round by hand: FedAvg, weighted by samples."""
    torch.manual_seed(0)
    module = build(hidden)
    server = [p.detach().clone() for p in module.parameters()]
    inputs, labels = problem._dataset.inputs.flatten(1), problem._dataset.labels  # type: ignore[attr-defined]
    parts = problem._samples.split(problem.sizes.tolist())

    def step() -> None:
        total, weight = [torch.zeros_like(p) for p in server], 0
        for client in torch.randperm(CLIENTS)[:COHORT].tolist():
            own = parts[client]
            with torch.no_grad():
                for p, value in zip(module.parameters(), server, strict=True):
                    p.copy_(value)
            optimizer = torch.optim.SGD(module.parameters(), LR)
            for _ in range(STEPS):
                rows = own[torch.randint(len(own), (BATCH,))]
                optimizer.zero_grad()
                F.cross_entropy(module(inputs[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            weight += len(own)
            for sum_, p in zip(total, module.parameters(), strict=True):
                sum_.add_(p.detach(), alpha=len(own))
        for value, sum_ in zip(server, total, strict=True):
            value.copy_(sum_ / weight)

    return step


def timed(step: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    """Seconds of each round but the first two, and of this process's processor in it, which a busy machine changes less."""
    seconds = []
    for number in range(WARM + rounds):
        start, processor = time.perf_counter(), time.process_time()
        step()
        if number >= WARM:
            seconds.append((time.perf_counter() - start, time.process_time() - processor))
    return seconds


def flower(hidden: list[int], data: Path, rounds: int) -> list[float]:
    """The same of Flower's simulation, with as many Ray workers as there are CPUs."""
    python = flower_python()
    sizes = [",".join(map(str, hidden)), CLIENTS, COHORT, rounds + WARM + 1, STEPS, BATCH, LR]
    command = [str(python), str(Path(__file__).with_name("flower_app.py")), str(data), *map(str, sizes)]
    # like ours: Ray's workers do not yield to other programs
    environment = os.environ | {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    try:
        out, errors = process.communicate(timeout=1200)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its Ray too
    lines = [line for line in out.splitlines() if line.startswith("SECONDS")]
    if not lines:
        raise RuntimeError(f"Flower failed: {errors[-2000:]}")
    seconds: list[float] = json.loads(lines[0].removeprefix("SECONDS"))
    return seconds[WARM:]


def flower_python() -> Path:
    """The Python of Flower's environment, which sees this one's packages behind its own."""
    python = FLOWER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(FLOWER)], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        here = Path(torch.__file__).parents[1]
        (FLOWER / "lib" / version / "site-packages" / "parent.pth").write_text(f"{here}\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "flwr[simulation]"], check=True)
    return python


# --- growth and memory ---------------------------------------------------------------------------------------------------


def many_clients(algorithm: Algorithm, clients: int) -> Federation:
    """A federation of the small model over random samples, four of each client."""
    generator = torch.Generator().manual_seed(0)
    n = 4 * clients
    samples = torch.rand(n, 64, generator=generator), torch.randint(10, (n,), generator=generator)
    parts = list(np.arange(n).reshape(clients, 4))
    torch.manual_seed(0)
    problem = ModelProblem(build(HIDDEN["5k"]), ClassificationConfig().build(), LabelledDataset(*samples), parts, 0, 64)
    problem.choose(BATCH, "vmap")
    plan = Plan(clients, steps=STEPS, lr=LR, batch_size=BATCH)
    start: Tensor = problem.start
    return Federation(algorithm, start, BatchedEngine(algorithm, problem, 64), plan, Availability(COHORT), problem.sizes)


def growth(num_turns: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of a round by the number of clients, all taking turns round by round."""
    federations = {size: many_clients(FedAvg(), size) for size in SIZES}
    wall: dict[int, list[float]] = {size: [] for size in SIZES}
    busy: dict[int, list[float]] = {size: [] for size in SIZES}
    for number in range(WARM + num_turns * rounds):
        for size, federation in federations.items():
            start, processor = time.perf_counter(), time.process_time()
            federation.step()
            if number >= WARM:
                wall[size].append(time.perf_counter() - start)
                busy[size].append(time.process_time() - processor)
    result = {}
    for size in SIZES:
        result[str(size)] = {"seconds": median(wall[size]), "processor_seconds": median(busy[size]),
                             "growth": median(b / a for a, b in zip(busy[SIZES[0]], busy[size], strict=True)) - 1}  # fmt: skip
        one = result[str(size)]
        print(f"{size:>6,} clients: {1e3 * one['seconds']:.1f} ms a round, {1e3 * one['processor_seconds']:.1f} ms of the "
              f"processor, {one['growth']:+.1%}", flush=True)  # fmt: skip
    return result


def memory() -> dict[str, int]:
    """The peak of this process, with what it has run."""
    federation = many_clients(SCALLION(), SIZES[-1])
    for _ in range(20):
        federation.step()
    states = sum(each.numel() * each.element_size() for each in federation.store.vectors.values())
    return {"clients": SIZES[-1], "state_bytes": states, "peak_bytes": peak_memory_bytes(torch.device("cpu"))}


if __name__ == "__main__":
    main()
