"""A worker that mpirun has started: MPI says who it is and where the others are, and its tensors travel by gloo or nccl as ever.

    mpiexec -n 2 python -m mpi4py launchers/mpi.py CONFIG [a.b=c ...]

pip's torch has no MPI backend, and needs none. A rank that fails calls ``MPI_Abort``, which ends all, on every host;
``-m mpi4py`` does the same for an error before this file is reached. mpirun passes signals on, so Ctrl-C and
SIGTERM save and stop.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from disttrain.component import UserError
from disttrain.launch.rank_info import OTHERS, RankInfo, others, refuse_torchrun
from disttrain.launch.shutdown import DONE, STOPPED, USERS_MISTAKE, StopRequest, leave, run_worker, stop_with_parent
from disttrain.worker import Life

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from disttrain.worlds.store import TCPStore

GRACE_SECONDS = 5.0
"""For whoever knows the reason to say it, before a rank that does not, or need not say it again, ends everybody."""
FORWARDING_SECONDS = 1.0
"""For mpirun to pass on what a rank has printed: what it has not when a rank aborts, it drops."""
PLACE_BYTES = 512


def main(arguments: Sequence[str] = sys.argv[1:]) -> NoReturn:
    """Train as one of MPI's ranks; the arguments are CONFIG and overrides. Leaves the process by an exit code."""
    stop_request = StopRequest()
    stop_request.listen()
    stop_with_parent()
    try:
        world = import_mpi()
    except UserError as error:
        print(f"disttrain: {error}", file=sys.stderr)
        leave(USERS_MISTAKE)
    try:
        if not arguments:
            raise UserError("a config file is needed: launchers/mpi.py CONFIG [a.b=c ...]")
        refuse_wrong_mpi(os.environ, world.size)
        info = rank_info(world)
    except UserError as error:
        if _is_first(os.environ):
            print(f"disttrain: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(GRACE_SECONDS)
        leave(USERS_MISTAKE)
    life = Life(arguments, info, stop_request)
    store: list[TCPStore | None] = []  # lives as long as this function does: the others meet in it

    def meet_and_train() -> int:
        store.append(introduce(world, info))
        return life.run()

    run_worker(meet_and_train, info, lambda: life.folder, partial(end, world, info))


def rank_info(world: Intracomm) -> RankInfo:
    """Who this process is in ``world``, and on its host."""
    from mpi4py import MPI

    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    return RankInfo(world.rank, world.size, host.rank, host.size, launcher="mpirun")


def introduce(world: Intracomm, info: RankInfo) -> TCPStore | None:
    """Tell torch where the workers meet: in a store of rank 0, at a port that the system chose. Returns rank 0's store."""
    from mpi4py import MPI

    from disttrain.worlds.store import TCPStore

    place, store = bytearray(PLACE_BYTES), None
    if info.rank == 0:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        address = address_of_this_host(alone=info.local_world_size == info.world_size)
        place[:] = f"{address} {store.port}".encode().ljust(PLACE_BYTES)
    world.Bcast([place, MPI.BYTE], root=0)
    address, port = place.decode().split()
    os.environ |= {
        "RANK": str(info.rank), "WORLD_SIZE": str(info.world_size), "LOCAL_RANK": str(info.local_rank),
        "LOCAL_WORLD_SIZE": str(info.local_world_size), "MASTER_ADDR": address, "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # nobody is to open a store again
    }  # fmt: skip
    return store


def address_of_this_host(alone: bool) -> str:
    """Where the other workers reach it: the loopback's if they are ``alone`` on it; its name, if that means only itself here."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "127."
    return "127.0.0.1" if alone else name if address.startswith("127.") else address


def refuse_wrong_mpi(environment: Mapping[str, str], size: int) -> None:
    """Refuse what would end in workers that do not know of each other.

    Args:
        environment: of this process.
        size: of MPI's world.

    Raises:
        UserError: if torchrun has started this process, or another MPI's mpirun than the one that mpi4py uses.
    """
    several = others(environment)
    by = ", ".join(f"{OTHERS[variable]} ({variable}={count})" for variable, count in several.items())
    refuse_torchrun(environment, by or "launchers/mpi.py, which takes its rank from MPI,")
    if several and size == 1:
        raise UserError(f"{by} started several processes, but mpi4py's MPI ({_library()}) sees one: start it by that MPI's own "
                        "mpiexec, or install mpi4py for yours (`pip install --no-binary mpi4py mpi4py`)")  # fmt: skip


def end(world: Intracomm, info: RankInfo, code: int, kind: str) -> NoReturn:
    """Leave with everybody: after a good end when all have come to it, after a failure at once.

    Who only lost another rank, or found the mistake that its host's first rank reports, gives that one time to be heard.
    """
    from mpi4py import MPI

    sys.stdout.flush()
    sys.stderr.flush()
    if code in (DONE, STOPPED):
        MPI.Finalize()
        leave(code)
    if kind == "peer" or (kind == "mistake" and info.local_rank):
        time.sleep(GRACE_SECONDS)
    time.sleep(FORWARDING_SECONDS)
    world.Abort(code)
    leave(code)


def import_mpi() -> Intracomm:
    """MPI's world of processes; UserError if mpi4py or its library is missing."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(f"launchers/mpi.py needs mpi4py, and an MPI library ({error}): pip install 'disttrain[mpi]', and "
                        "`pip install mpich` if the machine has no MPI of its own") from None  # fmt: skip
    return MPI.COMM_WORLD


def _library() -> str:
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().split()[:3]).strip(",\0")


def _is_first(environment: Mapping[str, str]) -> bool:
    """Whether this is the rank that speaks for all of them."""
    ranks = [environment.get(name, "0") for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")]
    return all(rank == "0" for rank in ranks)
