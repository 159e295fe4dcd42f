"""What ``summary.json`` says of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from disttrain.models.base import num_trainable
from disttrain.recording.memory import peak_memory_bytes
from disttrain.worlds.traffic import all_reduce_wire_bytes

if TYPE_CHECKING:
    from disttrain.training.session import Session


def summarise(session: Session, last: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run that is over.

    Args:
        session: of the run.
        last: its last record.
        measured: what the session has counted; replaces what is said here.
    """
    traffic = session.world.traffic
    gradient_bytes = 4 * num_trainable(session.model.module)
    return {
        "status": "finished" if session.completed else "stopped",
        "steps": session.step,
        "final_loss": last.get("loss"),
        "validation_loss": last.get("validation_loss"),
        **{name: value for name, value in last.items() if name.startswith("validation_")},
        "model": type(session.model.module).__name__,
        "optimizer": type(session.optimizer.keeper).__name__,
        "strategy": session.config.strategy.name,
        "compute": "emulated" if session.emulated else "real",
        "workers": session.world.size,
        "payload_bytes": traffic.payload_bytes,
        "wire_bytes": traffic.wire_bytes,
        "ddp_wire_bytes": session.step * all_reduce_wire_bytes(gradient_bytes, session.world.size),
        "peak_memory_bytes": peak_memory_bytes(session.device),
    } | dict(measured)
