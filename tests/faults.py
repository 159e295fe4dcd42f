"""Workers that die, hang, dawdle or send rubbish at a chosen step of a strategy, in the workers of ``tests/kit.py``.

    def trained(world):
        model, optimizer, strategy = ...
        inject(strategy, world, [Delay(rank=0, step=2, seconds=0.5), Kill(rank=1, step=3)])
        ...

In a run of the real loop, ``train(..., before_fit=lambda session: inject(session.strategy, session.world, [...]))``.

Step s is the s-th call of the strategy's ``before_step``, counted from 1. Under ``ddp`` the gradients of that step have been
averaged by then, so its peers feel a fault in the backward pass of step s + 1. A worker whose faults have not all struck when it
ends fails: a test of a fault that never happens would hold nothing.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from os import getpid
from typing import Any

import torch
import torch.distributed as dist

from disttrain.strategies import Strategy
from disttrain.worlds import TorchWorld

PRINT_STACKS = signal.SIGUSR2
"""On this signal a worker of the kit prints the stacks of all its threads for the failure message."""
PRINT_OWN_STACK = signal.SIGRTMIN  # SIGUSR1 asks a run to stop
"""The same for the thread that raises it. All threads' can be printed safely only where they have come to rest: one that is just
entering Python, as gloo's do for DDP's hook, has no frame yet, and the printing crashes."""
_waiting: list[Fault] = []  # of this worker, to strike yet


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that happens to worker ``rank`` when it is about to do step ``step``."""

    rank: int
    step: int

    def strike(self) -> None:
        """Let it happen to this process."""
        raise NotImplementedError(f"{type(self).__name__} must define strike()")


@dataclass(frozen=True, kw_only=True)
class Kill(Fault):
    """The worker dies as by the operating system's hand: nothing is said, flushed or closed by it."""

    def strike(self) -> None:
        signal.raise_signal(signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class Freeze(Fault):
    """The worker stops with all its threads, its connections open; it goes on after ``seconds``, or never (None)."""

    seconds: float | None = None

    def strike(self) -> None:
        if self.seconds is None:
            signal.raise_signal(PRINT_OWN_STACK)  # it could not answer later
            signal.raise_signal(signal.SIGSTOP)
            return
        # Thaws until it is ended: on a busy machine its first signal may come before the freeze.
        thaw = f"sleep {self.seconds}; while kill -CONT {getpid()}; do sleep 0.1; done"
        with subprocess.Popen(["sh", "-c", thaw]) as helper:
            signal.raise_signal(signal.SIGSTOP)
            helper.kill()


@dataclass(frozen=True, kw_only=True)
class Delay(Fault):
    """The worker is late by ``seconds``."""

    seconds: float

    def strike(self) -> None:
        time.sleep(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Corrupt(Fault):
    """One byte of the next message that the worker sends has all its bits flipped, on whichever lane that is.

    By default the third byte: of a float32 that is the exponent's last bit and most of the mantissa, so that the number
    changes by much more than rounding would hide and stays finite.
    """

    byte: int = 2

    def strike(self) -> None:
        _waiting.append(self)  # until there is a message
        _corrupt_next_message(self)


def inject(strategy: Strategy, world: TorchWorld, faults: Iterable[Fault]) -> None:
    """Let this worker's ``faults`` strike in ``strategy.before_step``.

    Raises:
        ValueError: if a fault is at a rank or a step that does not exist.
    """
    faults = list(faults)
    for fault in faults:
        if not (0 <= fault.rank < world.size and fault.step >= 1):
            raise ValueError(f"{fault}: need 0 <= rank < {world.size} and step >= 1")
    _waiting.extend(fault for fault in faults if fault.rank == world.rank)
    before_step, steps = strategy.before_step, count(1)

    def faulty_before_step() -> bool:
        step = next(steps)
        for fault in [fault for fault in faults if (fault.rank, fault.step) == (world.rank, step)]:
            _waiting.remove(fault)
            fault.strike()
        return before_step()

    strategy.before_step = faulty_before_step


def check_all_have_struck() -> None:
    """Fail a worker that ends before its faults."""
    assert not _waiting, f"the run ended before these faults struck: {_waiting}"


MESSAGES = {
    "allreduce": 0, "broadcast": 0, "send": 0, "allgather": 1,
    "all_gather_single": 1, "_allgather_base": 1,  # before torch 2.13
    "all_to_all_single": 1, "alltoall_base": 1,  # before torch 2.13
}  # fmt: skip
"""The methods of a process group that send, and which argument holds the message. Every world and lane sends through them."""


def _corrupt_next_message(fault: Corrupt) -> None:
    kept = {name: getattr(dist.ProcessGroup, name) for name in MESSAGES if hasattr(dist.ProcessGroup, name)}

    def corrupting(name: str) -> Callable[..., Any]:
        def method(group: dist.ProcessGroup, *arguments: Any, **options: Any) -> Any:
            if fault in _waiting and _sends(group, name, arguments):
                _waiting.remove(fault)
                arguments = _corrupted(name, arguments, fault.byte)
            return kept[name](group, *arguments, **options)

        return method

    for name in kept:
        setattr(dist.ProcessGroup, name, corrupting(name))


def _sends(group: dist.ProcessGroup, name: str, arguments: tuple[Any, ...]) -> bool:
    return name != "broadcast" or arguments[1].rootRank == group.rank()


def _corrupted(name: str, arguments: tuple[Any, ...], byte: int) -> tuple[Any, ...]:
    """The arguments with a byte of the message flipped: in place only where the result takes the message's place anyway."""
    place = MESSAGES[name]
    message = arguments[place]
    first, *others = [message] if isinstance(message, torch.Tensor) else message
    if name not in ("allreduce", "broadcast"):
        first = first.clone()
    flat = first.detach().view(-1).view(torch.uint8)
    flat[byte % flat.numel()] ^= 0xFF
    return (*arguments[:place], first if isinstance(message, torch.Tensor) else [first, *others], *arguments[place + 1 :])
