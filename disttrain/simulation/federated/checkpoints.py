"""Saving a federated run, and going on with it: rounds depend on their number and the state alone, so this is bitwise."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from disttrain.component import UserError
from disttrain.config import RunConfig, difference
from disttrain.federated import Federation
from disttrain.recording.checkpoint import CheckpointStore, Snapshot
from disttrain.recording.folder import RunFolder

ESSENTIAL = (
    "model",
    "data",
    "partition",
    "objective",
    "training.seed",
    "federated.clients",
    "federated.algorithm.name",
    "federated.ordering.name",
    "federated.ordering.score",
    "federated.ordering.expert",
    "federated.on_empty",
)
"""What a run cannot change on the way."""


class Checkpoints:
    """The checkpoints of one run, whose clients all live in this process.

    Args:
        folder: of the run.
        config: of the run.
        federation: whose state is saved.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, federation: Federation) -> None:
        self._config, self._federation = config, federation
        self._store = CheckpointStore(folder.checkpoints, 0, [0], secrets.token_hex(4), config.checkpoint.keep)
        self._store.forget_leftovers()

    def save(self, facts: dict[str, Any]) -> None:
        """The state after the last round, and some plain facts."""
        server, clients, own = self._federation.state()
        shared = {f"server.{name}": vector for name, vector in server.items()}
        local = {f"client.{name}": rows for name, rows in clients.items()}
        kept = facts | {"federation": own, "config": self._config.model_dump(mode="json")}
        self._store.save(self._federation.round, Snapshot(shared, local, kept, {"worker": 0}), lambda seconds: True)

    def resume(self, report: Callable[[str], None]) -> dict[str, Any] | None:
        """Put the newest state that is whole back; returns its facts, or None if there is no checkpoint at all.

        Raises:
            UserError: if no checkpoint is whole, or it is of another run.
        """
        steps = self._store.steps()
        for step in steps:
            if (fault := self._store.fault(step)) is None:
                return self._restore(self._store.load(step), step)
            report(fault)
        if steps:
            raise UserError(f"training.resume=auto, but no checkpoint in {self._store.directory} is whole; nothing was changed. "
                            "Restore one, or start anew in another run.directory")  # fmt: skip
        return None

    def _restore(self, snapshot: Snapshot, step: int) -> dict[str, Any]:
        facts = snapshot.shared_facts
        changed = difference(facts["config"], self._config.model_dump(mode="json"))
        wrong = [each for each in changed if any(each[0] == key or each[0].startswith(f"{key}.") for key in ESSENTIAL)]
        if wrong:
            listed = ", ".join(f"{key}: {was} there, {now} here" for key, was, now in wrong)
            raise UserError(
                f"the checkpoint is of another run ({listed}); nothing was changed. Start anew in another run.directory"
            )
        assert self._config.federated is not None
        if step > (rounds := self._config.federated.rounds):
            raise UserError(f"the checkpoint is of round {step}, beyond federated.rounds={rounds}")
        server = {name.removeprefix("server."): vector for name, vector in snapshot.shared.items()}
        clients = {name.removeprefix("client."): rows for name, rows in snapshot.local.items()}
        try:
            self._federation.restore(server, clients, facts["federation"])
        except ValueError as error:
            raise UserError(
                f"the checkpoint is of another run ({error}); nothing was changed. Start anew in another run.directory"
            ) from None
        return facts
