"""The workers' first exchange: do all run the same thing, and which of them share the run folder?

Facts travel as JSON in bytes of a fixed number; nothing is pickled.
"""

from __future__ import annotations

import json
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from disttrain.component import UserError
from disttrain.recording.folder import RunFolder
from disttrain.worlds import SurvivingWorld, TorchWorld

FACT_BYTES, MEETING = 1024, "meeting"


@dataclass(frozen=True)
class Meeting:
    """What the workers found out about each other."""

    folder: RunFolder
    members: list[int]
    """The workers that write to the same run folder as this one."""
    token: str
    """Equal on all workers, different in every start."""

    def remember(self, world: TorchWorld) -> None:
        """Leave word for workers that come later, where there may be some."""
        if isinstance(world, SurvivingWorld) and world.rank == 0:
            world.sign(MEETING, json.dumps([str(self.folder.path), self.members, self.token]))

    @classmethod
    def recalled(cls, world: SurvivingWorld) -> Meeting:
        """What the workers had found out, for one that comes later."""
        path, members, token = json.loads(world.signed(MEETING) or "")
        return cls(RunFolder(Path(path)), members, token)


def exchange_facts(world: TorchWorld, facts: dict[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """Every worker's facts, in worker order."""
    text = json.dumps(facts).encode()
    assert len(text) <= FACT_BYTES, f"{len(text)} bytes of facts"
    row = torch.frombuffer(bytearray(text.ljust(FACT_BYTES)), dtype=torch.uint8).to(device)
    return [json.loads(bytes(own.tolist())) for own in world.gather(row[None])[0]]


def meet(world: TorchWorld, device: torch.device, directory: Path, identity: dict[str, str], resume: bool) -> Meeting:
    """Compare ``identity`` (config digest, versions) and settle on worker 0's run directory.

    Raises:
        UserError: on every worker, if two workers' identities differ or the directory cannot be used.
    """
    token, host = secrets.token_hex(4), socket.gethostname()
    everybody = exchange_facts(world, identity | {"directory": str(directory), "token": token, "host": host}, device)
    _refuse_difference(everybody, list(identity))
    folder, token = RunFolder(Path(everybody[0]["directory"])), everybody[0]["token"]
    sign = folder.path / f".start-{token}"
    _claim(world, device, folder, resume, writes=world.rank == 0)
    if world.rank == 0:
        sign.touch()
    exchange_facts(world, {}, device)  # the sign is out
    sees = exchange_facts(world, {"sees": sign.exists()}, device)
    place = ["worker 0's folder" if fact["sees"] else everybody[rank]["host"] for rank, fact in enumerate(sees)]
    members = [rank for rank in range(world.size) if place[rank] == place[world.rank]]
    _claim(world, device, folder, resume, writes=members[0] == world.rank != 0)
    sign.unlink(missing_ok=True)
    return Meeting(folder, members, token)


def _refuse_difference(everybody: list[dict[str, Any]], names: list[str]) -> None:
    for name in names:
        for rank, facts in enumerate(everybody):
            if facts[name] != everybody[0][name]:
                raise UserError(f"workers 0 and {rank} differ in {name}: {everybody[0][name]} on {everybody[0]['host']}, "
                                f"{facts[name]} on {facts['host']}")  # fmt: skip


def _claim(world: TorchWorld, device: torch.device, folder: RunFolder, resume: bool, writes: bool) -> None:
    """The writers create the folder; if one of them cannot, every worker is told why."""
    complaint = ""
    if writes:
        try:
            folder.claim(resume)
        except UserError as error:
            complaint = str(error)[: FACT_BYTES // 2]
    for facts in exchange_facts(world, {"complaint": complaint}, device):
        if facts["complaint"]:
            raise UserError(facts["complaint"])
