"""How fast the workers of a launcher reach each other: latency and bandwidth of every pair, on every interface that all have.

Latency is half of the median round trip of one byte; bandwidth is that of one large message and the byte that answers it, both by
gloo, one pair at a time. So it is what a training gets, not what a cable could carry.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import statistics
import struct
import time
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist

from disttrain.launch.shutdown import leave_world

MOST_PAIRS = 66
"""All pairs of 12 workers; of more, each is measured with its neighbour only."""
ROUND_TRIPS, MESSAGE_BYTES, MESSAGES = 50, 2**22, 3
TIMEOUT, MEETING = timedelta(seconds=15), timedelta(seconds=60)
GET_ADDRESS, GET_FLAGS, UP, LOOPBACK = 0x8915, 0x8913, 0x1, 0x8  # Linux: SIOCGIFADDR, SIOCGIFFLAGS


@dataclass(frozen=True)
class Link:
    """What was measured between two ranks on an interface."""

    interface: str
    first: int
    second: int
    latency_seconds: float
    bytes_per_second: float


def meet_and_measure() -> tuple[list[Link], dict[str, str]]:
    """The same as :func:`measure`, by ranks that have yet to meet, in a process group that is gone afterwards."""
    dist.init_process_group("gloo", timeout=MEETING)
    try:
        return measure()
    finally:
        leave_world()


def measure() -> tuple[list[Link], dict[str, str]]:
    """Of every interface; the same on all ranks. Also why an interface could not be measured.

    The default process group must exist.
    """
    links, failures = [], {}
    everybody = _exchange({"host": socket.gethostname(), "interfaces": interfaces()})
    one_host = len({each["host"] for each in everybody}) == 1
    names = [name for name in everybody[0]["interfaces"] if all(name in each["interfaces"] for each in everybody)]
    for name in names:
        if everybody[0]["interfaces"][name] == "loopback" and not one_host:
            continue
        try:
            found, why = _on(name), ""
        except RuntimeError as error:
            found, why = [], str(error).splitlines()[0]
        reasons = [each["why"] for each in _exchange({"why": why[:200]}) if each["why"]]
        if reasons:
            failures[name] = reasons[0]
        else:
            links += [Link(name, *pair) for each in _exchange({"links": found}) for pair in each["links"]]
    return links, failures


def interfaces() -> dict[str, str]:
    """Those that are up and have an IPv4 address: ``loopback`` or ``network`` by name; Linux only, elsewhere none."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                fcntl.ioctl(probe.fileno(), GET_ADDRESS, request)
                flags = struct.unpack_from("H", fcntl.ioctl(probe.fileno(), GET_FLAGS, request), 16)[0]
            except OSError:
                continue
            if flags & UP:
                found[name] = "loopback" if flags & LOOPBACK else "network"
    return found


def pairs(size: int) -> list[tuple[int, int]]:
    """Which ranks are measured with each other."""
    every = list(combinations(range(size), 2))
    return every if len(every) <= MOST_PAIRS else [(rank, (rank + 1) % size) for rank in range(size)]


def _on(name: str) -> list[tuple[int, int, float, float]]:
    """First and second rank, latency and bandwidth, of the pairs of which this rank is the first."""
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ["GLOO_SOCKET_IFNAME"] = name
    try:
        group = dist.new_group(timeout=TIMEOUT, backend="gloo")
    finally:
        os.environ.pop("GLOO_SOCKET_IFNAME")
        os.environ |= {"GLOO_SOCKET_IFNAME": before} if before is not None else {}
    found = []
    for first, second in pairs(dist.get_world_size()):
        dist.barrier(group)  # one pair at a time
        if dist.get_rank() == first:
            found.append((first, second, *_ask(second, group)))
        elif dist.get_rank() == second:
            _answer(first, group)
    dist.destroy_process_group(group)
    return found


def _ask(peer: int, group: Any) -> tuple[float, float]:
    byte, message = torch.zeros(1, dtype=torch.uint8), torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
    trips = [_seconds(byte, byte, peer, group) for _ in range(ROUND_TRIPS)]
    latency = statistics.median(trips) / 2
    large = min(_seconds(message, byte, peer, group) for _ in range(MESSAGES))
    return latency, MESSAGE_BYTES / max(large - latency, 1e-9)


def _seconds(out: torch.Tensor, back: torch.Tensor, peer: int, group: Any) -> float:
    start = time.perf_counter()
    dist.send(out, peer, group)
    dist.recv(back, peer, group)
    return time.perf_counter() - start


def _answer(peer: int, group: Any) -> None:
    byte, message = torch.zeros(1, dtype=torch.uint8), torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
    for number in range(ROUND_TRIPS + MESSAGES):
        dist.recv(byte if number < ROUND_TRIPS else message, peer, group)
        dist.send(byte, peer, group)


def _exchange(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rank's facts, as JSON of a fixed size."""
    text = json.dumps(facts).encode()
    size = torch.tensor([len(text)])
    dist.all_reduce(size, dist.ReduceOp.MAX)
    row = torch.frombuffer(bytearray(text.ljust(int(size))), dtype=torch.uint8)
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, row)
    return [json.loads(bytes(each.tolist())) for each in rows]
