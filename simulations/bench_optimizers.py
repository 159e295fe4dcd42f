"""What an optimizer's step costs on the matrices of PLM mini: ours, torch's, a plain loop; and dealt out against redundant.

    python simulations/bench_optimizers.py [--layers 2] [--turns 5] [--dtype float32] [--ranks 2 4]

Prints seconds of a step as medians over interleaved turns: torch.optim.AdamW, torch.optim.Muon, our Muon, SOAP and COSMOS, and
COSMOS one matrix after the other with a Householder QR each (tests/reference/cosmos_loop.py). Newton–Schulz runs in ``--dtype``,
except in torch's Muon, which knows bfloat16 only. The limit is what the products of Newton–Schulz would take at the speed of one
large matrix product, measured in the same run. Then processes with one thread each step all matrices redundantly, or dealt out.
All layers of PLM mini are alike: two stand for twelve.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.optim import Optimizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the references, which are the tests'

from disttrain.launch.cpu import avoid_broken_amx, round_alike_at_any_address  # noqa: E402
from disttrain.models import PlmConfig  # noqa: E402
from disttrain.optim import COSMOS, SOAP, Muon, build_param_groups  # noqa: E402
from disttrain.optim.newton_schulz import newton_schulz_flops  # noqa: E402
from disttrain.task import TokenTask  # noqa: E402
from disttrain.worlds import TorchWorld  # noqa: E402
from tests.reference.cosmos_loop import CosmosLoop  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    options = parser.parse_args()
    round_alike_at_any_address()
    avoid_broken_amx()
    alone(options)
    for ranks in options.ranks:
        mp.spawn(shared, (ranks, free_port(), options), nprocs=ranks)


def alone(options: argparse.Namespace) -> None:
    """One process, all threads."""
    torch.set_num_threads(2)
    matrices, dtype = matrices_of(options.layers), DTYPES[options.dtype]
    variants: dict[str, Callable[[], Optimizer]] = {
        "AdamW (torch)": lambda: torch.optim.AdamW(matrices),
        "Muon (torch, bfloat16)": lambda: torch.optim.Muon(matrices),
        "Muon": lambda: Muon(matrices, ns_dtype=dtype),
        "SOAP, bases still": lambda: SOAP(matrices, frequency=1_000_000),
        "SOAP, bases turning": lambda: SOAP(matrices, frequency=1),  # one step in ten, by default
        "COSMOS": lambda: COSMOS(matrices, ns_dtype=dtype),
        "COSMOS, plain loop": lambda: CosmosLoop(matrices, ns_dtype=dtype),
        "COSMOS, plain loop, bfloat16": lambda: CosmosLoop(matrices, ns_dtype=torch.bfloat16),
    }
    seconds = measured({name: make() for name, make in variants.items()}, options.turns)
    limit = sum(newton_schulz_flops(*p.shape) for p in matrices) / flops_per_second(dtype)
    numel = sum(p.numel() for p in matrices)
    print(f"{options.layers} layers of PLM mini, {len(matrices)} matrices, {numel:,} parameters; {options.dtype}")
    print(f"{torch.get_num_threads()} threads; torch {torch.__version__}; medians of {options.turns} turns")
    print(f"{'optimizer':<30} {'a step':>10} {'to Muon':>8} {'to the limit':>13}")
    for name, each in seconds.items():
        print(f"{name:<30} {each:>8.2f} s {each / seconds['Muon']:>8.2f} {each / limit:>13.2f}")
    print(f"{'limit: Newton–Schulz at peak':<30} {limit:>8.2f} s")


def shared(rank: int, ranks: int, port: int, options: argparse.Namespace) -> None:
    """One of several processes: redundant, dealt out in 32 bits, and in 16."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    matrices, world, dtype = matrices_of(options.layers), TorchWorld(), DTYPES[options.dtype]
    optimizers = {name: COSMOS(named(matrices), ns_dtype=dtype) for name in ("redundant", "float32", "bfloat16")}
    optimizers["float32"].shard(world, "float32")
    optimizers["bfloat16"].shard(world, "bfloat16")
    seconds = measured(optimizers, options.turns, before=lambda: world.mean(torch.ones(1, 1)))
    if rank == 0:
        shares = ", ".join(f"{name} {each:.2f} s ({each / seconds['redundant']:.2f})" for name, each in seconds.items())
        print(f"COSMOS on {ranks} ranks of one thread: {shares}")
    dist.destroy_process_group()


def measured(optimizers: dict[str, Optimizer], turns: int, before: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Median seconds of a step; the first, which makes bases, does not count."""
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.step()
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(turns):
        for name, optimizer in optimizers.items():
            before()
            start = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def matrices_of(layers: int) -> list[nn.Parameter]:
    """PLM mini's weight matrices, with gradients."""
    torch.manual_seed(0)
    module = PlmConfig(preset="mini", layers=layers).build(TokenTask(256, 128))
    (matrices,) = (group.parameters for group in build_param_groups(module) if group.role == "matrix")
    for p in matrices:
        p.grad = torch.randn_like(p)
    return list(matrices)


def named(matrices: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    """Under names that all ranks share."""
    return [(f"matrix {number}", p) for number, p in enumerate(matrices)]


def flops_per_second(dtype: torch.dtype) -> float:
    """Of a product of two 2048 × 2048 matrices, the best of five."""
    a, b, best = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def free_port() -> int:
    """A port for the processes to meet at."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return int(store.port)


if __name__ == "__main__":
    main()
