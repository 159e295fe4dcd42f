"""Who am I? The launchers' environment variables, normalised."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from disttrain.component import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OTHERS = {  # variable that holds the number of processes, set by a launcher that disttrain does not take its ranks from
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "PMI_SIZE": "MPICH's mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
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
        """Read what torchrun sets; without any of it this process is alone.

        Raises:
            UserError: if variables are missing, malformed or of two launchers.
        """
        given = [name for name in TORCHRUN if name in environment]
        _refuse_other_launchers(environment, torchrun="RANK" in given)
        if "RANK" not in given and "WORLD_SIZE" not in given:
            return cls()
        missing = [name for name in TORCHRUN if name not in given]
        if missing:
            raise UserError(f"this process seems to be started by torchrun ({', '.join(given)} set), but {', '.join(missing)} "
                            "is missing: start it by torchrun or by `disttrain train --workers N`")  # fmt: skip
        info = cls(
            rank=_integer(environment, "RANK"),
            world_size=_integer(environment, "WORLD_SIZE"),
            local_rank=_integer(environment, "LOCAL_RANK"),
            local_world_size=_integer(environment, "LOCAL_WORLD_SIZE"),
            launcher="torchrun",
            restarts=_integer(environment, "TORCHELASTIC_RESTART_COUNT", default="0"),
            max_restarts=_integer(environment, "TORCHELASTIC_MAX_RESTARTS", default="0"),
            survives_peers=environment.get("DISTTRAIN_ON_FAILURE") == "continue",
            life=_integer(environment, "DISTTRAIN_LIFE", default="0"),
        )
        if not (info.rank < info.world_size and info.local_rank < info.local_world_size <= info.world_size):
            raise UserError(f"the ranks contradict each other: RANK={info.rank} of WORLD_SIZE={info.world_size}, "
                            f"LOCAL_RANK={info.local_rank} of LOCAL_WORLD_SIZE={info.local_world_size}")  # fmt: skip
        return info


def _integer(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = environment.get(name, default) or ""
    if not value.isdecimal():
        raise UserError(f"{name}={value!r} is not a number; torchrun sets it")
    return int(value)


def _refuse_other_launchers(environment: Mapping[str, str], torchrun: bool) -> None:
    for variable, launcher in OTHERS.items():
        if not environment.get(variable, "1").isdecimal() or int(environment.get(variable, "1")) <= 1:
            continue
        if torchrun and variable != "SLURM_STEP_NUM_TASKS":  # one torchrun per Slurm task is the usual way
            raise UserError(f"two launchers claim this process: {launcher} ({variable}={environment[variable]}) and torchrun "
                            f"(RANK={environment['RANK']}): use one of them")  # fmt: skip
        if not torchrun:
            raise UserError(f"{launcher} started {environment[variable]} processes ({variable}), which would train without "
                            "knowing of each other: let it start one `torchrun` per host instead")  # fmt: skip
