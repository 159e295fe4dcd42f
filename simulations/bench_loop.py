"""Tokens per second of our loop against a bare torch DDP loop: same model, data, optimizer and workers, interleaved.

    python simulations/bench_loop.py [--workers 2] [--rounds 15] [--steps 10] [config overrides, a.b=c ...]

In every worker process both loops are alive at once and take turns of a few steps, so that whatever else the machine does hits
both. Prints the medians over the turns, and their ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from disttrain.config import load_config
from disttrain.data import Dataset, make_order
from disttrain.launch.rank_info import RankInfo
from disttrain.launch.shutdown import StopRequest, leave
from disttrain.run import start_session
from disttrain.training.loop import steps

CONFIG = """
model: {name: plm, width: 128, layers: 4, heads: 4}
data: {name: python_source, sequence_length: 128}
optimizer: {name: adamw, lr: 1e-3}
training: {steps: 1000000, batch_size: 16, validate_every: 0}
"""


def main() -> None:
    """Start the workers, or be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each loop")
    parser.add_argument("--steps", type=int, default=10, help="steps per turn")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.workers}"]
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(subprocess.run([*torchrun, *sys.argv, "--folder", folder]).returncode)
    measure(options)


def measure(options: argparse.Namespace) -> None:
    """Let the two loops take turns, and print what they reached."""
    path = Path(options.folder, f"bench{os.environ['RANK']}.yaml")
    path.write_text(CONFIG)
    loaded = load_config(path, [f"run.directory={options.folder}/run", "run.name=bench", *options.overrides])
    session = start_session(loaded, RankInfo.from_environment(), StopRequest())
    config, training = loaded.config, loaded.config.training
    corpus = config.data.build(training.seed)
    order = make_order(config.partition, corpus.train, session.world.size, training.seed)
    session.prepare(config.model.build(corpus.task))
    session.display.console.quiet = True
    session.resume()
    ours = steps(session, corpus, config.objective.build(), order)
    bare = bare_loop(
        config.model.build(corpus.task),
        config.optimizer.build,
        corpus.train,
        training.batch_size // session.world.size,
        training.precision == "bf16",
    )
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for turn in range(options.rounds + 2):
        for name, loop in (("ours", ours), ("bare", bare)) if turn % 2 else (("bare", bare), ("ours", ours)):
            dist.barrier()
            start = time.perf_counter()
            for _ in range(options.steps):
                next(loop)
            dist.barrier()
            seconds[name].append(time.perf_counter() - start)
    if session.world.rank == 0:
        tokens = options.steps * training.batch_size * corpus.task.units_per_sample
        report({name: each[2:] for name, each in seconds.items()}, tokens)
    leave(0)


def bare_loop(
    module: nn.Module,
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    dataset: Dataset,
    batch_size: int,
    bf16: bool,
) -> Iterator[None]:
    """What a user would write by hand around torch DDP, with the clipping and the printing of a loss that ours has too."""
    optimizer = build_optimizer(module)
    model = nn.parallel.DistributedDataParallel(module)
    generator = torch.Generator().manual_seed(dist.get_rank())
    while True:
        inputs, targets = dataset.batch(torch.randint(len(dataset), (batch_size,), generator=generator))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        yield


def report(seconds: dict[str, list[float]], tokens_per_turn: int) -> None:
    """Print medians and the ratio of each turn's pair."""
    for name, each in seconds.items():
        print(f"{name}  {tokens_per_turn / statistics.median(each):,.0f} tokens/s (median of {len(each)} turns)")
    ratios = [bare / ours for ours, bare in zip(seconds["ours"], seconds["bare"], strict=True)]
    print(f"ours / bare torch DDP: {statistics.median(ratios):.3f} (median of paired turns; least {min(ratios):.3f})")


if __name__ == "__main__":
    main()
