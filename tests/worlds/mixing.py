"""Workers that mix without training, and keep a journal that outlives them: what each has added, and what it had then."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from disttrain.launch.rank_info import RankInfo
from disttrain.launch.start import start_world
from disttrain.parameters import FlatParameters
from disttrain.strategies.gossip import DPSGD, DPSGDConfig
from disttrain.training.survival import Survival
from disttrain.worlds.deadline import Deadline
from disttrain.worlds.pair import END

FLOOR_SECONDS = 0.4


class Added(NamedTuple):
    """An exchange that has landed."""

    call: int
    """The step whose exchange was being waited for when it did."""
    peer: int
    step: int
    weight: float
    flow: Tensor


class Entry(NamedTuple):
    """What a worker had after a step, and by what it came there."""

    step: int
    x: Tensor
    update: Tensor
    added: list[Added]


class Journal:
    """Of one worker, written by single writes: a killed worker leaves whole entries, or half of the last one."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._file = os.open(directory / f"{rank}.journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._pending: list[Added] = []

    def listen(self, lane: Any) -> None:
        """Note what lands on a lane."""
        landed = lane._landed

        def noting(x: Any, call: int) -> Any:
            before = dict(lane._outstanding)
            found = landed(x, call)
            for peer in sorted(
                before.keys() - lane._outstanding.keys(), key=lambda peer: (before[peer].step != call, before[peer].step, peer)
            ):
                exchange = before[peer]
                if exchange.result.exception() is None and (got := exchange.result.result()) is not None:
                    flow = (got.theirs - exchange.row) * got.weight
                    self._pending.append(Added(call, peer, exchange.step, got.weight, flow))
            return found

        lane._landed = noting

    def write(self, step: int, x: Tensor, update: Tensor) -> None:
        """All of it has been added, and an update, and gave ``x``."""
        added, self._pending = self._pending, []
        os.write(self._file, pickle.dumps(tuple(Entry(step, x.clone(), update, added))))


def read_journal(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        while True:
            try:
                yield Entry(*pickle.load(file))  # written by this very test
            except (EOFError, pickle.UnpicklingError):
                return


def begun(x: Tensor, layout: Any, world: Any, topology: Any) -> DPSGD:
    strategy = DPSGDConfig(topology=topology).build()
    strategy.begin(x, layout, world)
    return strategy


def mix(directory: Path, topology: Any, steps: int, step_seconds: float) -> dict[str, Any]:
    """Start from a vector of its own, mix, and move at random instead of training; what there is to say of it."""
    world = start_world(RankInfo.from_environment(), torch.device("cpu"), "gloo", None, 60.0)
    world.deadline = Deadline(FLOOR_SECONDS, 3.0)
    flat = FlatParameters(nn.Linear(10, 10).double())
    strategy = begun(flat.x, flat.layout, world, topology)
    draws = torch.Generator().manual_seed(world.rank)
    flat.x.copy_(torch.randn(flat.x.shape, generator=draws, dtype=torch.float64))
    journal, survival, nothing = Journal(directory, world.rank), Survival(world), torch.zeros_like(flat.x)
    journal.listen(strategy.lane)
    journal.write(0, flat.x, nothing)
    step, seconds, skipped = 0, {}, 0
    while step < steps:
        survival.tell(step)
        if missed := survival.missed(step, steps, world.size):
            strategy.skip(missed)
            step, skipped = step + missed, skipped + missed
        start = time.monotonic()
        time.sleep(step_seconds)
        strategy.before_step()
        update = torch.randn(flat.x.shape, generator=draws, dtype=torch.float64)
        flat.x += update
        journal.write(step + 1, flat.x, update)
        strategy.after_step()
        step += 1
        seconds[step] = time.monotonic() - start
    survival.tell(step)
    merged = strategy.finish()
    journal.write(END, flat.x, nothing)
    return {"seconds": seconds, "lost_exchanges": strategy.lane.lost_exchanges, "merged": merged.clone(), "skipped": skipped,
            "living": world.record.survivors}  # fmt: skip
