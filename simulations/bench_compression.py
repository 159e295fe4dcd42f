"""How fast the compressors are, against a memory copy, against torch.topk, and as the bandwidth below which they pay.

    python simulations/bench_compression.py [--sizes 10000000 1000000 100000] [--turns 7] [--threads 2] [--device cpu]

All figures are medians over interleaved turns, each of which also copies the vector into an existing buffer (``copy_``): a
fraction of a copy is the median of the turns' own fractions. GB/s are those of the gradient in float32. Prints:

1. ``encode``, ``decoded_sum`` of two senders and ``add_decoded_`` of every compressor;
2. block top-k at 1 % against ``torch.topk`` at 1 %;
3. a step of error feedback (propose, encode, decode, commit: strategy ``compressed`` with one worker) in memory copies;
4. the break-even bandwidth for n workers, against an all-reduce in bf16 over a ring, if nothing of either is hidden behind the
   backward pass:

       B* = 8 · (bytes a worker sends in the all-reduce − bytes a worker sends compressed) / seconds of coding

   Compressed gradients are faster on links of fewer bits per second. With e, s and a the seconds of ``encode``, of
   ``decoded_sum`` for one sender and of ``add_decoded_``, coding takes e + n·s + a if payloads are gathered, and
   (1 + 1/n)·e + 2·s + (1 + 1/n)·a in two phases; of the two, the one with the larger B* is shown.

Writes docs/compression_bench.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disttrain.compression import (
    EF14,
    EF21,
    QSGD,
    BlockTopK,
    Cast,
    Compressor,
    EControl,
    Feedback,
    Identity,
    Int8,
    RandK,
    ScaledSign,
    TopK,
)
from disttrain.compression.exchange import Exchange, Gather, TwoPhase
from disttrain.launch.cpu import keep_freed_memory
from disttrain.parameters import Layout, Unit
from disttrain.strategies import Compressed
from disttrain.worlds import StackedWorld
from disttrain.worlds.traffic import all_reduce_wire_bytes

DOCS = Path(__file__).parents[1] / "docs"
COMPRESSORS: dict[str, Compressor] = {
    "identity": Identity(),
    "cast bf16": Cast("bf16"),
    "int8": Int8(),
    "qsgd 4 bits": QSGD(),
    "sign": ScaledSign(),
    "block top-k 3/256": BlockTopK(3, 256),
    "block top-k 1/100": BlockTopK(1, 100),
    "top-k 1 %": TopK(0.01),
    "rand-k 1 %": RandK(0.01),
}
FEEDBACKS: dict[str, Feedback] = {"none": Feedback(), "EF14": EF14(), "EF21": EF21(), "EControl": EControl()}
STEP_COMPRESSOR = "block top-k 3/256"
WORKERS = (2, 8, 64)

Variants = dict[str, Callable[[], object]]
Timing = dict[str, float]
"""``seconds``, and ``copies``: the same in memory copies."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000_000, 1_000_000, 100_000], help="entries of the vectors")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=DOCS / "compression_bench.json", help="where the figures are written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as every run does
    figures: dict[str, Any] = {"machine": machine(options)}
    print(figures["machine"], flush=True)
    for d in options.sizes:
        x = torch.randn(1, d, generator=torch.Generator().manual_seed(0)).to(options.device)
        codecs = measured(codec_variants(x), x, options.turns)
        print_codecs(d, codecs)
        selection = measured(selection_variants(x), x, options.turns)
        print_selection(selection)
        steps = measured(step_variants(x), x, options.turns)
        print_steps(steps)
        pays = {name: {n: break_even(name, d, n, codecs) for n in WORKERS} for name in COMPRESSORS}
        print_break_even(pays)
        figures[str(d)] = {"codecs": codecs, "selection": selection, "steps": steps, "break_even": pays}
    figures["load_after"] = os.getloadavg()[0]
    print(f"load {figures['load_after']:.1f} at the end")
    options.json.write_text(json.dumps(figures, indent=1) + "\n")


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Where this was measured."""
    gpu = torch.cuda.get_device_name() if options.device.startswith("cuda") else None
    return {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "device": gpu or options.device,
        "threads": options.threads,
        "torch": torch.__version__,
        "turns": options.turns,
        "load": os.getloadavg()[0],
    }


def measured(variants: Variants, x: Tensor, turns: int) -> dict[str, Timing]:
    """Medians over turns, in each of which every variant follows a copy of ``x``; the first turn does not count."""
    buffer = torch.empty_like(x)
    seconds: dict[str, list[float]] = {name: [] for name in (*variants, "copy")}
    copies: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(turns + 1):
        for name, variant in variants.items():
            copy, own = timed(lambda: buffer.copy_(x), x), timed(variant, x)
            if turn:
                seconds[name].append(own)
                seconds["copy"].append(copy)
                copies[name].append(own / copy)
    result = {name: {"seconds": statistics.median(seconds[name]), "copies": statistics.median(copies[name])} for name in variants}
    return result | {"copy": {"seconds": statistics.median(seconds["copy"]), "copies": 1.0}}


def timed(function: Callable[[], object], x: Tensor) -> float:
    """Seconds until it is done, on a GPU too."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if x.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def codec_variants(x: Tensor) -> Variants:
    """What every compressor does with a vector, by its name and the operation's."""
    d, keys, weights, out = x.shape[-1], torch.tensor([5], device=x.device), torch.full((2,), 0.5, device=x.device), x.clone()
    variants: Variants = {}
    for name, compressor in COMPRESSORS.items():
        payload = compressor.encode(x, keys)
        two = payload.repeat(2, 1)
        variants[f"{name}: encode"] = lambda c=compressor: c.encode(x, keys)  # type: ignore[misc]
        variants[f"{name}: sum of 2"] = lambda c=compressor, p=two: c.decoded_sum(p, d, weights, x.dtype)  # type: ignore[misc]
        variants[f"{name}: add"] = lambda c=compressor, p=payload: c.add_decoded_(out, p, -1.0)  # type: ignore[misc]
    return variants


def selection_variants(x: Tensor) -> Variants:
    """One entry in a hundred."""
    k = max(1, x.shape[-1] // 100)
    variants: Variants = {"torch.topk": lambda: x.abs().topk(k, sorted=False)}
    for name, compressor in COMPRESSORS.items():
        if isinstance(compressor, BlockTopK):
            variants[name] = lambda c=compressor: c.encode(x)  # type: ignore[misc]
    return variants


def step_variants(x: Tensor) -> Variants:
    """A step of every feedback."""
    layout = Layout((Unit("x", (x.shape[-1],), 0),), x.shape[-1])
    variants: Variants = {}
    for name, feedback in FEEDBACKS.items():
        strategy = Compressed(COMPRESSORS[STEP_COMPRESSOR], feedback, "gather")
        strategy.begin(torch.zeros_like(x), layout, StackedWorld(1), seed=0)
        variants[name] = lambda s=strategy: s.reduce(layout.units, [x])  # type: ignore[misc]
    return variants


def break_even(name: str, d: int, n: int, codecs: dict[str, Timing]) -> dict[str, Any]:
    """B* in Gbit/s for n workers, and with which exchange; see above."""
    e, both, a = (codecs[f"{name}: {operation}"]["seconds"] for operation in ("encode", "sum of 2", "add"))
    s, compressor, units = both / 2, COMPRESSORS[name], [Unit("x", (d,), 0)]
    coding: dict[str, tuple[Exchange, float]] = {"gather": (Gather(compressor), e + n * s + a)}
    if n > 2:
        coding["two_phase"] = TwoPhase(compressor, remembers=True), (1 + 1 / n) * e + 2 * s + (1 + 1 / n) * a
    dense = all_reduce_wire_bytes(2 * d, n)
    best = {how: 8e-9 * (dense - exchange.wire_bytes(units, n)) / seconds for how, (exchange, seconds) in coding.items()}
    exchange = max(best, key=lambda how: best[how])
    return {"gigabits_per_second": best[exchange], "exchange": exchange}


def print_codecs(d: int, codecs: dict[str, Timing]) -> None:
    """GB/s of gradient, and the speed in parts of a copy's."""
    copy = codecs["copy"]["seconds"]
    print(f"\n{d:,} entries; a copy {1e3 * copy:.3g} ms, {4e-9 * d / copy:.1f} GB/s")
    print(f"{'GB/s of gradient (of a copy)':<30} {'encode':>16} {'sum of 2':>16} {'add':>16}")
    for name in COMPRESSORS:
        each = (codecs[f"{name}: {operation}"] for operation in ("encode", "sum of 2", "add"))
        print(f"{name:<30} " + " ".join(f"{4e-9 * d / t['seconds']:>8.2f} ({1 / t['copies']:>5.3f})" for t in each), flush=True)


def print_selection(selection: dict[str, Timing]) -> None:
    """How many times as fast as torch.topk."""
    slow = selection["torch.topk"]["seconds"]
    for name, timing in selection.items():
        print(f"{name:<30} {1e3 * timing['seconds']:>8.2f} ms {slow / timing['seconds']:>6.1f} times as fast as torch.topk")


def print_steps(steps: dict[str, Timing]) -> None:
    """A step in copies."""
    line = ", ".join(f"{name} {steps[name]['copies']:.1f}" for name in FEEDBACKS)
    print(f"a step with {STEP_COMPRESSOR}, in memory copies: {line}")


def print_break_even(pays: dict[str, dict[int, dict[str, Any]]]) -> None:
    """B*, where it is positive."""
    print(f"{'pays below, Gbit/s':<30} " + " ".join(f"{f'n = {n}':>16}" for n in WORKERS))
    for name, by_size in pays.items():
        cells = ((each["gigabits_per_second"], each["exchange"]) for each in by_size.values())
        print(f"{name:<30} " + " ".join(f"{f'{b:.2f} {how}' if b > 0 else 'never':>16}" for b, how in cells), flush=True)


if __name__ == "__main__":
    main()
