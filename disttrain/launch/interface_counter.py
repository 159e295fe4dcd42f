"""What the kernel counts at a network interface: the truth that ``wire_bytes`` is held against."""

from __future__ import annotations

from pathlib import Path

# Of this process's own network namespace; /sys/class/net shows the namespace in which it was mounted.
COUNTERS = Path("/proc/self/net/dev")
RECEIVED, SENT = 0, 8  # columns of bytes


class InterfaceCounter:
    """Bytes through an interface since this object was made, all processes of the machine or container together.

    Frames count with their headers. Large segments that the kernel hands over whole have one header.

    Args:
        name: such as ``eth0``; None, an unknown name or a system without :data:`COUNTERS`: nothing is counted.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._before: dict[str, int] = self._read()

    def counts(self) -> dict[str, int]:
        """``interface_sent_bytes`` and ``interface_received_bytes``; empty if nothing is counted."""
        return {key: now - self._before.get(key, now) for key, now in self._read().items()}

    def restore(self, counts: dict[str, int]) -> None:
        """Go on from what :meth:`counts` was in an earlier process."""
        self._before = {key: before - counts.get(key, 0) for key, before in self._before.items()}

    def _read(self) -> dict[str, int]:
        if self._name is None or not COUNTERS.exists():
            return {}
        for line in COUNTERS.read_text().splitlines():
            name, _, columns = line.partition(":")
            if name.strip() == self._name:
                values = columns.split()
                return {"interface_sent_bytes": int(values[SENT]), "interface_received_bytes": int(values[RECEIVED])}
        return {}
