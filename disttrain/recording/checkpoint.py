"""Checkpoints that are whole or not there: safetensors shards and a JSON manifest with every file's size and SHA-256.

A checkpoint is written beside its final place and renamed into it when every file is on disk. Workers that share the folder
meet in it, not over the network, so a strategy without communication can save too; hosts with a folder of their own hold a
checkpoint each. Nothing is ever unpickled.

::

    step_00000100/  shared.safetensors          what is equal on all workers
                    rank00000.safetensors …     what is each worker's own
                    manifest.json               step, config, world size, sizes and SHA-256 of the files
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

Patience = Callable[[float], bool]
"""Whether to go on waiting, after so many seconds."""

FORMAT = 1
MANIFEST, SHARED = "manifest.json", "shared.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is damaged; the message names the file."""


@dataclass(frozen=True)
class Snapshot:
    """Tensors and JSON-able facts: what all workers share, and what is this worker's own."""

    shared: dict[str, Tensor]
    local: dict[str, Tensor]
    shared_facts: dict[str, Any]
    local_facts: dict[str, Any]


def lost_workers(facts: dict[str, Any]) -> set[int]:
    """Whom a run had lost by a checkpoint, and not got back."""
    back = {each["rank"]: each.get("back_from") is not None for each in facts.get("lost_workers", ())}
    return {rank for rank, is_back in back.items() if not is_back}


def rank_file(rank: int) -> str:
    """Where worker ``rank`` keeps what is its own."""
    return f"rank{rank:05d}.safetensors"


def pack(snapshot: Snapshot) -> list[bytes]:
    """A snapshot as three messages for another worker: facts, what is shared, what is its own."""
    facts = json.dumps([snapshot.shared_facts, snapshot.local_facts]).encode()
    return [facts, *(_packed(tensors) for tensors in (snapshot.shared, snapshot.local))]


def unpack(messages: Sequence[bytes]) -> Snapshot:
    """The snapshot again."""
    shared_facts, local_facts = json.loads(messages[0])
    shared, local = (safetensors.torch.load(message) for message in messages[1:])
    return Snapshot(shared, local, shared_facts, local_facts)


class CheckpointStore:
    """The checkpoints of a run, as one worker sees them.

    Args:
        directory: the run folder's ``checkpoints``.
        rank: this worker.
        members: the workers that share the folder; the first of them leads: it writes what is shared, and the manifest.
        token: equal on all workers and different in every start of the run, so that a crashed start's leftovers are no one's.
        keep: how many checkpoints stay.
    """

    def __init__(self, directory: Path, rank: int, members: list[int], token: str, keep: int = 2) -> None:
        self.directory, self.rank, self._all_members, self.token, self.keep = directory, rank, members, token, keep

    @property
    def members(self) -> list[int]:
        """The workers that share the folder."""
        return self._all_members

    @property
    def leads(self) -> bool:
        """Whether this worker is the first of them."""
        return self.rank == self.members[0]

    def save(self, step: int, snapshot: Snapshot, patient: Patience, meeting_place: str | None = None) -> None:
        """Write this worker's part; the leader returns when the checkpoint is whole and under its final name.

        Args:
            step: names the checkpoint; the leader's counts.
            snapshot: this worker's part.
            patient: tells the leader whether to go on waiting for the other members' parts.
            meeting_place: where members meet that are not at one step; by default the step.

        Raises:
            CheckpointError: if a file cannot be written; older checkpoints stay as they are.
        """
        partial = self._partial(step, meeting_place)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            self._write_own(partial, snapshot)
            if self.leads:
                self._complete(partial, step, snapshot, patient)
                self._prune()
        except OSError as error:
            self._give_up(partial, error)
            raise CheckpointError(f"checkpoint of step {step} not saved: {error.strerror or error} ({error.filename})") from None

    def settle(self) -> None:
        """Complete what :meth:`save` has left to do; here it leaves nothing."""

    def steps(self) -> list[int]:
        """Steps of all complete-looking checkpoints, the newest first."""
        names = [path.name for path in self.directory.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
        return sorted((int(name.removeprefix("step_")) for name in names), reverse=True)

    def fault(self, step: int) -> str | None:
        """What is wrong with a checkpoint, naming the file; None if it verifies.

        The leader checks every file in its folder, the others those they load.
        """
        try:
            files = self._manifest(step)["files"]
            mine = {SHARED, rank_file(self.rank), _first_part(files)}
            for name in sorted(files) if self.leads else sorted(mine & set(files)):
                _verify(self._path(step) / name, files[name])
        except CheckpointError as error:
            return str(error)
        except (KeyError, TypeError):
            return f"{self._path(step) / MANIFEST} is no manifest of a checkpoint"
        return None

    def load(self, step: int) -> Snapshot:
        """Read a verified checkpoint; a worker that the saved run did not have gets the first worker's ``local``.

        Raises:
            CheckpointError: if a file is unreadable.
        """
        manifest = self._manifest(step)
        shared, _ = _read(self._path(step) / SHARED)
        own = self._path(step) / rank_file(self.rank)
        local, local_facts = _read(own if own.exists() else self._path(step) / _first_part(manifest["files"]))
        return Snapshot(shared, local, manifest["facts"], local_facts)

    def facts(self, step: int) -> dict[str, Any]:
        """What all workers share of a checkpoint's facts.

        Raises:
            CheckpointError: if its manifest is unreadable.
        """
        facts: dict[str, Any] = self._manifest(step)["facts"]
        return facts

    def load_everybody(self, step: int, num_workers: int, prefixes: tuple[str, ...] = ("",)) -> list[dict[str, Tensor]]:
        """What was each worker's own, of all ``num_workers`` that the saved run had and had not lost, in their order.

        Args:
            step: of a checkpoint.
            num_workers: of the saved run.
            prefixes: only tensors whose names begin with one of them are read.

        Raises:
            CheckpointError: if a file is damaged, or is not in this folder because hosts have folders of their own.
        """
        manifest, everybody = self._manifest(step), []
        files, lost = manifest["files"], lost_workers(manifest["facts"])
        for rank in sorted(set(range(num_workers)) - lost):
            path = self._path(step) / rank_file(rank)
            if rank_file(rank) not in files:
                raise CheckpointError(f"{path} is not there: all workers' files must be in one folder")
            _verify(path, files[rank_file(rank)])
            everybody.append(_read(path, prefixes)[0])
        return everybody

    def forget_leftovers(self) -> None:
        """Remove what a crash in the middle of saving left behind; the leader calls it before anybody saves."""
        for path in self.directory.glob("*.partial-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _partial(self, step: int, meeting_place: str | None = None) -> Path:
        return self.directory / f"{meeting_place or _folder(step)}.partial-{self.token}"

    def _path(self, step: int) -> Path:
        return self.directory / _folder(step)

    def _write_own(self, partial: Path, snapshot: Snapshot) -> None:
        entry = _write(partial / rank_file(self.rank), snapshot.local, snapshot.local_facts)
        _write_text(partial / f"rank{self.rank:05d}.json", json.dumps(entry))

    def _complete(self, partial: Path, step: int, snapshot: Snapshot, patient: Patience) -> None:
        files = {SHARED: _write(partial / SHARED, snapshot.shared, {})}
        for rank in self.members:
            note = self._note(partial, rank, patient)
            if note is None:
                continue
            files[rank_file(rank)] = json.loads(note.read_text())
            note.unlink()
        manifest = {"format": FORMAT, "step": step, "facts": snapshot.shared_facts, "files": files}
        _write_text(partial / MANIFEST, json.dumps(manifest, indent=1))
        _sync(partial)
        final = self._path(step)
        if final.exists():  # the run went back beyond it: it was damaged, or is a state that was trained again
            shutil.rmtree(final)
        partial.rename(final)
        _sync(self.directory)

    def _note(self, partial: Path, rank: int, patient: Patience) -> Path | None:
        """Where a member says that its part is on disk; None if the checkpoint is to do without it."""
        return _await_member(partial, rank, patient)

    def _give_up(self, partial: Path, error: OSError) -> None:
        if self.leads:
            shutil.rmtree(partial, ignore_errors=True)
        else:
            (partial / rank_file(self.rank)).unlink(missing_ok=True)  # a full disk needs the room for the note
            try:
                (partial / f"rank{self.rank:05d}.failed").write_text(str(error))
            except OSError:
                return  # the leader's patience ends the wait

    def _prune(self) -> None:
        for step in self.steps()[self.keep :]:
            shutil.rmtree(self._path(step), ignore_errors=True)

    def _manifest(self, step: int) -> dict[str, Any]:
        path = self._path(step) / MANIFEST
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is unreadable: {error}") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a manifest of format {FORMAT}")
        return manifest


def _await_member(partial: Path, rank: int, patient: Patience) -> Path:
    """The note with which a member says that its part is on disk."""
    note, started = partial / f"rank{rank:05d}.json", time.monotonic()
    while not note.exists():
        failed = (partial / f"rank{rank:05d}.failed").exists()
        if failed or not patient(time.monotonic() - started):
            raise OSError(0, f"worker {rank} has not written its part", str(partial / rank_file(rank)))
        time.sleep(0.005)
    return note


def _first_part(files: dict[str, Any]) -> str:
    """The first worker's that has one: what a worker without any goes on with."""
    return min(name for name in files if name != SHARED)


def _folder(step: int) -> str:
    return f"step_{step:08d}"


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, Any]:
    """Write a safetensors file through to the disk; returns its manifest entry."""
    data = _packed(tensors, {"facts": json.dumps(facts)})
    _write_bytes(path, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _packed(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(own, metadata=metadata)


def _write_bytes(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a failed write names no file of itself
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_text(path: Path, text: str) -> None:
    beside = path.with_suffix(".tmp")
    _write_bytes(beside, text.encode())
    beside.rename(path)


def _sync(directory: Path) -> None:
    """Make renames inside ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify(path: Path, entry: dict[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{path} is damaged: {size} bytes instead of {entry['bytes']}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} is unreadable: {error.strerror}") from None
    if digest != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the manifest's")


def _read(path: Path, prefixes: tuple[str, ...] = ("",)) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            names = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118 - not a mapping
            return {name: file.get_tensor(name) for name in names}, facts
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is unreadable: {error}") from None
