"""One worker's state, handed to a worker that was started again: two messages over a connection of their own.

The two meet in the launcher's store; the bytes travel directly. Nothing is unpickled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist

from disttrain.worlds.store import PrefixStore, TCPStore
from disttrain.worlds.traffic import Traffic

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FOREVER = timedelta(days=30)
"""gloo closes all connections of a group when one wait expires."""
CONNECTING = timedelta(seconds=60)


def joined(store: TCPStore, name: str, rank: int, wanted: Callable[[], bool]) -> ProcessGroup:
    """A group of two, once the other one is here, too.

    Args:
        store: both can reach it.
        name: never used before.
        rank: 0 or 1.
        wanted: whether to go on waiting for the other one.

    Raises:
        RuntimeError: if it does not come.
    """
    store.set(f"{name}/{rank}", "")
    while not store.check([f"{name}/{1 - rank}"]):
        if not wanted():
            raise RuntimeError(f"{name}: nobody is there any more")
        time.sleep(0.005)
    own = PrefixStore(name, store.clone())  # type: ignore[attr-defined]
    own.set_timeout(CONNECTING)
    return cast("ProcessGroup", dist.ProcessGroupGloo(own, rank, 2, FOREVER))


def give(group: ProcessGroup, messages: Sequence[bytes], traffic: Traffic) -> None:
    """Send some bytes, of any length; returns when the other one has read them."""
    for tag, message in enumerate(messages):
        group.send([torch.tensor([len(message)])], 1, 2 * tag).wait()
        group.send([torch.frombuffer(bytearray(message), dtype=torch.uint8)], 1, 2 * tag + 1).wait()
        traffic.add(len(message), len(message))
    group.recv([torch.empty(1, dtype=torch.int64)], 1, 2 * len(messages)).wait()


def take(group: ProcessGroup, number: int) -> list[bytes]:
    """So many messages.

    Raises:
        RuntimeError: if the other one is lost.
    """
    messages = []
    for tag in range(number):
        length = torch.empty(1, dtype=torch.int64)
        group.recv([length], 0, 2 * tag).wait()
        message = torch.empty(int(length), dtype=torch.uint8)
        group.recv([message], 0, 2 * tag + 1).wait()
        messages.append(message.numpy().tobytes())
    group.send([torch.ones(1, dtype=torch.int64)], 0, 2 * number).wait()
    return messages
