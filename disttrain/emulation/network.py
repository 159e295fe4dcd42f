"""A bridge and a network namespace for each worker, joined by links whose bandwidth is shaped in both directions.

Everything is made inside the anonymous network namespace of this process and has no name outside it. A worker's namespace is
anonymous too: a process that sleeps holds it. When this process, which is PID 1 of its own PID namespace, ends in whatever
way, the kernel kills those processes and takes namespaces, links and shapers away: nothing can be left behind.

A link is a veth pair: ``eth0`` in the worker's namespace, where a token bucket (tc-tbf) shapes what the worker sends, and
``wN`` at the bridge, where one shapes what it receives. Latency and loss are not emulated.

                  ┌ w0 ── eth0  10.77.0.1   worker 0
        bridge ───┤
                  └ w1 ── eth0  10.77.0.2   worker 1
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Sequence

from disttrain.emulation.bandwidth import Link

INTERFACE = "eth0"
"""Every worker's, in its own namespace."""
CLONE_NEWNET = 0x40000000  # of unshare(2)
CONGESTION_CONTROL = "reno"
"""Of TCP in the workers' namespaces, whatever this machine's own is. It is in every kernel and keeps a link without loss full;
bbr, which holds back for 0.2 s every 10 s to look for the latency, made every fourth all-reduce at 10 Mbit/s a fifth slower."""
LARGEST_SEGMENT = 65_536
BUCKET_SECONDS, LEAST_BUCKET = 0.005, 16_384
QUEUE_SECONDS, LEAST_QUEUE = 0.2, 1_000_000


class NetworkError(RuntimeError):
    """The kernel refused a part of the network; the message has the command and what it said."""


class Network:
    """The network of all workers; to be made once in a process, in a network namespace of its own.

    Args:
        links: each worker's.

    Raises:
        NetworkError: if the kernel refuses a part of it.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "bridge", "type", "bridge")
        _run("ip", "link", "set", "bridge", "up")
        self._holders = [_hold_namespace() for _ in links]
        for worker, link in enumerate(links):
            self._connect(worker)
            self.shape(worker, link)

    def address(self, worker: int) -> str:
        """IPv4 address of a worker."""
        return f"10.77.{(worker + 1) // 256}.{(worker + 1) % 256}"

    def inside(self, worker: int, command: Sequence[str]) -> list[str]:
        """``command``, to be run in the namespace of ``worker``: the process keeps its id and its parent."""
        return ["nsenter", "-t", str(self._holders[worker].pid), "-n", *command]

    def shape(self, worker: int, link: Link) -> None:
        """Give a worker's link another bandwidth; what is in its queues stays."""
        _shape(f"w{worker}", link.down)
        _shape(INTERFACE, link.up, functools.partial(self.inside, worker))

    def cut(self, worker: int) -> None:
        """Take a worker's link away, as if a cable were pulled: nothing gets through, and connections know nothing of it."""
        _run("ip", "link", "set", f"w{worker}", "down")

    def restore(self, worker: int) -> None:
        """Plug a worker's link in again."""
        _run("ip", "link", "set", f"w{worker}", "up")

    def _connect(self, worker: int) -> None:
        port, namespace = f"w{worker}", str(self._holders[worker].pid)
        _run("ip", "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", namespace)
        _run("ip", "link", "set", port, "master", "bridge", "up")
        _run(*self.inside(worker, ["ip", "address", "add", f"{self.address(worker)}/16", "dev", INTERFACE]))
        _run(*self.inside(worker, ["sh", "-c", f"echo {CONGESTION_CONTROL} > /proc/sys/net/ipv4/tcp_congestion_control"]))
        for name in ("lo", INTERFACE):
            _run(*self.inside(worker, ["ip", "link", "set", name, "up"]))


def bucket_bytes(rate: int) -> int:
    """Size of the token bucket for ``rate`` bits per second: what a link that was idle sends at once.

    Small, or short messages would be faster than the link; but it must last from one timer interrupt of the shaper to the
    next (5 ms; 1 Gbit/s came out as 0.27 Gbit/s with 0.5 ms), and hold the largest segment.
    """
    return max(LEAST_BUCKET, int(rate / 8 * BUCKET_SECONDS))


def segment_bytes(rate: int) -> int:
    """The largest segment that TCP may hand to the shaper at once; headers of all its packets are to fit in the bucket too.

    A shaper cuts larger ones into packets, each counted with its headers at the interface, which costs accuracy and time.
    """
    return min(LARGEST_SEGMENT, bucket_bytes(rate) * 7 // 8)


def _shape(device: str, rate: int, inside: functools.partial[list[str]] | None = None) -> None:
    """Replace the shaper of ``device``, here or in another namespace."""
    queue = max(LEAST_QUEUE, int(rate / 8 * QUEUE_SECONDS))  # so long that TCP, not a drop, finds the rate
    tbf = ["tbf", "rate", f"{rate}bit", "burst", str(bucket_bytes(rate)), "limit", str(queue)]
    for command in (
        ["ip", "link", "set", device, "gso_max_size", str(segment_bytes(rate))],
        ["tc", "qdisc", "replace", "dev", device, "root", "handle", "1:", *tbf],
    ):
        _run(*(inside(command) if inside else command))


def _hold_namespace() -> subprocess.Popen[bytes]:
    """A process that does nothing but live in a new network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter() -> None:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return subprocess.Popen(["sleep", "infinity"], stdin=subprocess.DEVNULL, preexec_fn=enter)


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"`{' '.join(command)}` failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
