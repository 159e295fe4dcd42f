"""From a rank to a world: threads, device, network interface, process group."""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from disttrain.component import UserError
from disttrain.launch.cpu import avoid_broken_amx, keep_freed_memory, round_alike_at_any_address
from disttrain.launch.rank_info import RankInfo
from disttrain.launch.shutdown import FAILED, leave
from disttrain.worlds import JoiningWorld, SurvivingWorld, TorchWorld
from disttrain.worlds.store import TCPStore


def start_cpu(threads: int | None, local_world_size: int) -> int:
    """Give torch ``threads`` CPU threads, by default this worker's share of the cores; returns their number."""
    keep_freed_memory()
    round_alike_at_any_address()
    avoid_broken_amx()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // local_world_size))
    return torch.get_num_threads()


def choose_device(device: str, local_rank: int, local_world_size: int) -> torch.device:
    """The device of this worker: CUDA device ``local_rank`` if every worker of the host has one, unless the CPU is asked for.

    Raises:
        UserError: if CUDA is asked for and the host has fewer devices than workers.
    """
    available = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and available < local_world_size):
        return torch.device("cpu")
    if available < local_world_size:
        raise UserError(f"launch.device=cuda, but this host has {available} devices for {local_world_size} workers")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def start_world(
    info: RankInfo, device: torch.device, backend: str, interface: str | None, timeout_seconds: float, debug: bool = False
) -> TorchWorld:
    """Meet the other workers; a process group that exists already (Ray Train, a user's own script) is taken as it is.

    With ``debug``, the world checks what strategies do with it.

    Raises:
        UserError: if the interface does not exist, or the backend cannot serve the device.
    """
    timeout = timedelta(seconds=timeout_seconds)
    if dist.is_initialized():
        return TorchWorld(timeout=timeout, debug=debug)
    backend = {"auto": "nccl" if device.type == "cuda" else "gloo"}.get(backend, backend)
    if info.survives_peers and backend == "nccl":
        raise UserError("--on-failure continue needs launch.backend=gloo: a lost worker breaks nccl for all")
    if backend == "nccl" and device.type != "cuda":
        raise UserError(f"launch.backend=nccl needs a GPU for every worker, and this one is on {device}: use gloo")
    if interface is not None:
        _use_interface(interface)
    alone = dist.HashStore() if info.launcher == "none" or info.life else None  # type: ignore[attr-defined]
    dist.init_process_group(
        backend,
        store=alone,
        rank=0 if alone else -1,
        world_size=1 if alone else -1,
        timeout=timeout,
    )
    return _surviving(info, timeout, debug) if info.survives_peers else TorchWorld(timeout=timeout, debug=debug)


def _surviving(info: RankInfo, timeout: timedelta, debug: bool) -> SurvivingWorld:
    """Around the launcher's store, without which no worker can go on."""
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False)

    def launcher_lost() -> None:
        print(f"disttrain: rank {info.rank}: the launcher is gone, and with it the store", file=sys.stderr)
        leave(FAILED)

    if info.life:
        return JoiningWorld(store, info.rank, info.world_size, info.life, timeout, debug, launcher_lost)
    return SurvivingWorld(store, info.rank, timeout, debug, launcher_lost)


def _use_interface(interface: str) -> None:
    names = [name for _, name in socket.if_nameindex()]
    if interface not in names:
        raise UserError(f"launch.interface={interface} does not exist here; there are: {', '.join(names)}")
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
