"""What is to be emulated: everything that the process inside the namespaces is told."""

from __future__ import annotations

from disttrain.component import Config
from disttrain.emulation.bandwidth import Link
from disttrain.emulation.events import Event


class Plan(Config):
    """A checked emulation; travels as JSON."""

    config: str
    """The config file."""
    overrides: tuple[str, ...]
    """``a.b=c``; among them ``run.directory`` and ``launch.interface``."""
    directory: str
    """The run folder."""
    links: tuple[Link, ...]
    """One for each worker."""
    events: tuple[Event, ...] = ()
    max_restarts: int = 0
    timeout: float
    """``launch.timeout``, in seconds."""
    compute: str
    """``real``, or ``emulated`` if the config has a ``launch.emulated_step_time``."""

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self.links)
