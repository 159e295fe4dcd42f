"""Workers as Ray actors in a placement group, on this machine or on a cluster.

    python launchers/ray_cluster.py --workers 2 CONFIG [a.b=c ...]

Ray finds the machines and starts the processes. Training is the same as under torchrun: tensors travel by gloo or nccl, never
through Ray. No wait for Ray is without a deadline, and whatever happens here, the actors and a local Ray end with this process.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from disttrain.component import UserError
from disttrain.config import load_config
from disttrain.launch.ending import start_until_final
from disttrain.launch.rank_info import OTHERS, others, refuse_torchrun
from disttrain.launch.shutdown import USERS_MISTAKE, StopRequest, leave
from disttrain.launchers.claimed import Told, claimed_folder, with_directory
from disttrain.launchers.ray_supervision import Crew
from disttrain.quantities import parse_duration

LOCAL_STORE_BYTES = 80_000_000  # nearly Ray's least: nothing large goes through its object store


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Train, and leave by the exit codes of ``disttrain train``."""
    parsed = _parser().parse_intermixed_args(arguments)
    try:
        code = run(parsed)
    except UserError as error:
        print(f"disttrain: {error}", file=sys.stderr)
        code = USERS_MISTAKE
    except Told:
        code = USERS_MISTAKE
    except KeyboardInterrupt:
        code = 130
    leave(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ray_cluster.py", description="Train over workers that are Ray actors.", allow_abbrev=False
    )
    parser.add_argument("--workers", type=int, required=True, metavar="N", help="actors to start")
    parser.add_argument("--address", default="local", metavar="HOST:PORT", help="of a Ray cluster, or auto for the one that "
                        "this machine belongs to (default: a Ray of its own, on this machine)")  # fmt: skip
    parser.add_argument("--max-restarts", type=int, default=0, metavar="N", help="restarts after failures (default 0)")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="CPUs that Ray keeps for a worker (default 1)")
    parser.add_argument("--spread", action="store_true", help="one worker per node (default: as few nodes as can be)")
    parser.add_argument("--wait", default="3min", metavar="TIME", help="for Ray to find room and start (default 3min)")
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that replace the file's")
    return parser


def run(parsed: argparse.Namespace) -> int:
    """Check everything, connect to Ray, and train to the end; returns the exit code.

    Raises:
        UserError: for what is wrong with options, config, packages or cluster.
        Told: if a worker has found the mistake, and it was reported.
    """
    wait = _check_options(parsed)
    loaded = load_config(parsed.config, parsed.overrides)
    loaded.config.check_world(parsed.workers)
    if parsed.address == "local":  # elsewhere, the data need not be here
        loaded.config.check_data()
    ray = _import_ray()
    with claimed_folder(loaded) as folder:
        overrides = with_directory(parsed.overrides, loaded, folder)
        try:
            stop = StopRequest()
            stop.listen()  # a Ray that is interrupted while it starts leaves processes behind for minutes
            _connect(ray, parsed)
            stop.listen()  # again: Ray has installed a handler of its own for SIGTERM
            gpu = loaded.config.launch.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= parsed.workers
            crew = Crew(parsed.workers, parsed.cpus, gpu, parsed.spread, wait, folder.path.absolute(), stop)
            config = str(Path(parsed.config).absolute())
            code = start_until_final(crew.start, config, overrides, folder.path, parsed.max_restarts)
        finally:
            ray.shutdown()
        if code == USERS_MISTAKE:
            raise Told
    return code


def _check_options(parsed: argparse.Namespace) -> float:
    """Refuse what cannot be; returns ``--wait`` in seconds."""
    refuse_torchrun(os.environ, "launchers/ray_cluster.py, which starts the workers itself,")
    if several := others(os.environ):
        by = ", ".join(f"{OTHERS[variable]} ({variable}={count})" for variable, count in several.items())
        raise UserError(
            f"{by} started several processes, and launchers/ray_cluster.py is to be started once: it starts the workers"
        )
    for option, least in (("workers", 1), ("cpus", 1), ("max_restarts", 0)):
        if getattr(parsed, option) < least:
            raise UserError(f"--{option.replace('_', '-')} must be at least {least}, got {getattr(parsed, option)}")
    try:
        return parse_duration(parsed.wait)
    except ValueError as error:
        raise UserError(f"--wait: {error}") from None


def _connect(ray: Any, parsed: argparse.Namespace) -> None:
    """Start a Ray on this machine, or join the cluster.

    Raises:
        UserError: if that fails.
    """
    os.environ["RAY_DEDUP_LOGS"] = "0"  # a line that two workers print is two lines
    os.environ.setdefault("RAY_worker_niceness", "0")  # actors that train are not background work, for which Ray takes them
    here: dict[str, Any] = {}
    if parsed.address == "local":
        here = {"num_cpus": parsed.workers * parsed.cpus, "include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    try:
        ray.init(address=parsed.address, log_to_driver=True, logging_level="ERROR", **here)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--address {parsed.address}: Ray cannot be reached or started: {reason}") from None


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(f"launchers/ray_cluster.py needs Ray ({error}): pip install 'disttrain[ray]'") from None
    return ray
