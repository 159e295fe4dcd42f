"""Who am I? The launchers' environment variables, normalised."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from disttrain.component import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SIGNS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
"""Any of them says that this process was given a rank; an address alone is often exported by hand."""
KUBERNETES = "KUBERNETES_SERVICE_HOST"
"""Kubernetes sets it in every pod."""
POD = tuple(name for name in TORCHRUN if not name.startswith("LOCAL_"))
"""What a PyTorchJob sets in a pod."""
OTHERS = {  # variable that holds the number of processes, set by a launcher that this process does not take its ranks from
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "PMI_SIZE": "MPICH's mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}
INSTEAD = {
    "OMPI_COMM_WORLD_SIZE": "let it start launchers/mpi.py instead, or one `torchrun` per host without MPI",
    "PMI_SIZE": "let it start launchers/mpi.py instead, or one `torchrun` per host without MPI",
    "SLURM_STEP_NUM_TASKS": "let it start one `torchrun` per host instead, as launchers/slurm.sbatch does",
}


@dataclass(frozen=True)
class RankInfo:
    """This process among all that the launcher started."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank among the processes of this host."""
    local_world_size: int = 1
    launcher: str = "none"
    restarts: int = 0
    """How often the launcher has started all processes again."""
    max_restarts: int = 0
    survives_peers: bool = False
    """Whether the launcher lets workers go on when others are lost."""
    life: int = 0
    """How often this rank was lost in the run, which goes on, and was started again."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> RankInfo:
        """Read what torchrun, or a Kubernetes PyTorchJob, sets; without any of it this process is alone.

        Raises:
            UserError: if variables are missing, malformed or of two launchers.
        """
        given = [name for name in (*TORCHRUN, "TORCHELASTIC_RUN_ID") if name in environment]
        signs = [name for name in SIGNS if name in environment]
        _refuse_other_launchers(environment, signs)
        if not signs:
            return cls()
        missing = [name for name in TORCHRUN if name not in given]
        if missing == ["LOCAL_RANK", "LOCAL_WORLD_SIZE"] and KUBERNETES in environment:
            return _checked(cls(_integer(environment, "RANK"), _integer(environment, "WORLD_SIZE"), launcher="kubernetes"))
        if missing:
            are = "is" if len(missing) == 1 else "are"
            raise UserError(f"this process seems to be started by {_believed(environment, missing)} ({', '.join(given)} set), "
                            f"but {', '.join(missing)} {are} missing: start it by torchrun or by `disttrain train`")  # fmt: skip
        return _checked(cls(
            rank=_integer(environment, "RANK"),
            world_size=_integer(environment, "WORLD_SIZE"),
            local_rank=_integer(environment, "LOCAL_RANK"),
            local_world_size=_integer(environment, "LOCAL_WORLD_SIZE"),
            launcher="torchrun",
            restarts=_integer(environment, "TORCHELASTIC_RESTART_COUNT", default="0"),
            max_restarts=_integer(environment, "TORCHELASTIC_MAX_RESTARTS", default="0"),
            survives_peers=environment.get("DISTTRAIN_ON_FAILURE") == "continue",
            life=_integer(environment, "DISTTRAIN_LIFE", default="0"),
        ))  # fmt: skip


def _checked(info: RankInfo) -> RankInfo:
    if info.rank < info.world_size and info.local_rank < info.local_world_size <= info.world_size:
        return info
    raise UserError(f"the ranks contradict each other: RANK={info.rank} of WORLD_SIZE={info.world_size}, "
                    f"LOCAL_RANK={info.local_rank} of LOCAL_WORLD_SIZE={info.local_world_size}")  # fmt: skip


def _believed(environment: Mapping[str, str], missing: list[str]) -> str:
    """The launcher that has set what there is."""
    if KUBERNETES in environment and "LOCAL_RANK" in missing:
        return "a Kubernetes PyTorchJob"
    looks_like_a_pod = set(missing) == {"LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    return f"torchrun, or a PyTorchJob without {KUBERNETES}" if looks_like_a_pod else "torchrun"


def _integer(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = environment.get(name, default) or ""
    if not value.isdecimal():
        raise UserError(f"{name}={value!r} is not a number; torchrun sets it")
    return int(value)


def refuse_torchrun(environment: Mapping[str, str], launcher: str) -> None:
    """Raise UserError if this process, which ``launcher`` has given a rank, has one of torchrun's too."""
    if signs := [f"{name}={environment[name]}" for name in SIGNS if name in environment]:
        raise UserError(f"two launchers claim this process: {launcher} and torchrun ({', '.join(signs)}): use one of them")


def others(environment: Mapping[str, str]) -> dict[str, int]:
    """The variables of other launchers that have started several processes, and how many."""
    sizes = {variable: environment.get(variable, "") for variable in OTHERS}
    return {variable: int(size) for variable, size in sizes.items() if size.isdecimal() and int(size) > 1}


def _refuse_other_launchers(environment: Mapping[str, str], signs: list[str]) -> None:
    for variable, size in others(environment).items():
        if signs and variable != "SLURM_STEP_NUM_TASKS":  # one torchrun per Slurm task is the usual way
            refuse_torchrun(environment, f"{OTHERS[variable]} ({variable}={size})")
        if not signs:
            raise UserError(f"{OTHERS[variable]} started {size} processes ({variable}), which would train without "
                            f"knowing of each other: {INSTEAD[variable]}")  # fmt: skip
