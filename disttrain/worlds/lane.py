"""A lane of processes: a process group of its own, and one thread that does what is submitted, in that order.

gloo and nccl match the messages of a group by the order in which they are issued. Two lanes never meet, because each has its own
group; and on one lane the order is that of submission, because it has only one thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from disttrain.worlds.in_flight import InFlight, LaneError, LaneThread, name_of
from disttrain.worlds.torch_world import TorchWorld
from disttrain.worlds.traffic import Traffic
from disttrain.worlds.world import Lane, MixingRound

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class TorchLane(TorchWorld):
    """The workers of one process group, and a thread.

    A primitive that somebody calls directly waits for its turn behind the jobs submitted before. Time is exposed when a caller
    waits, not when the lane's own thread does.

    Args:
        name: for error messages.
        group: the lane's own; None: all processes'.
        timeout: for lanes made from this one.
        debug: hold every job to the rules in `world.py`.
        traffic: of this worker.
    """

    def __init__(self, name: str, group: ProcessGroup | None, timeout: timedelta | None, debug: bool, traffic: Traffic) -> None:
        super().__init__(group, timeout, debug, traffic)
        self.name, self.row, self.rows = f"lane {name!r}", f"lane {name}", torch.tensor([0])
        self._jobs: queue.SimpleQueue[tuple[InFlight, tuple[Any, ...]]] = queue.SimpleQueue()
        self._running = ""
        self._thread = LaneThread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    def start(self, job: Callable[..., Any], *arguments: Any) -> InFlight:
        """Run ``job(*arguments)`` after what was started before; arguments are lent, the result must be fresh.

        Raises:
            LaneError: if a job on this lane starts another one.
        """
        if threading.current_thread() is self._thread:
            raise LaneError(
                f"{name_of(job)} was started by a job on its own {self.name}, and would wait for it for ever: call it"
            )
        in_flight = InFlight(self.traffic, job, arguments if self.debug else ())
        self._jobs.put((in_flight, arguments))
        return in_flight

    def _work(self) -> None:
        broken: BaseException | None = None
        while True:
            in_flight, arguments = self._jobs.get()
            self._running = name_of(in_flight.job)
            if broken is None:
                with self.traffic.during(self.row, self._running):
                    broken = in_flight.run(arguments, self.debug)
            else:
                in_flight.fail(broken)  # the workers are out of step here: what would come next could only hang or lie
            del in_flight, arguments  # or the last job's arguments live as long as the next does not come

    def _blocking(self, primitive: Callable[[], Tensor]) -> Tensor:
        if threading.current_thread() is self._thread:
            return primitive()
        result: Tensor = self.start(primitive).take()
        return result

    def _job_name(self) -> str:
        return f" in {self._running}"


class AbsentLane:
    """A lane seen by a process that has no member in it: all rows that go in and come out are none (``L = 0``)."""

    def __init__(self, size: int, traffic: Traffic) -> None:
        self.size, self.traffic = size, traffic
        self.ids = self.positions = self.rows = torch.empty(0, dtype=torch.int64)

    def mean(self, x: Tensor) -> Tensor:
        """``[0, d]`` to ``[0, d]``."""
        return x.clone()

    def gather(self, x: Tensor) -> Tensor:
        """``[0, b]`` to ``[0, size, b]``."""
        return x.new_empty(0, self.size, *x.shape[1:])

    def transpose(self, x: Tensor) -> Tensor:
        """``[0, size, b]`` to ``[0, size, b]``."""
        return x.clone()

    def exchange(self, x: Tensor, round: MixingRound) -> Tensor:
        """``[0, b]`` to ``[0, k, b]``."""
        return x.new_empty(0, round.senders.shape[1], *x.shape[1:])

    def exchange_with(self, x: Tensor, peers: Tensor) -> Tensor:
        """``[0, b]`` to ``[0, k, b]``."""
        return x.new_empty(0, peers.shape[1], *x.shape[1:])

    def exchange_by_rows(self, x: Tensor, round: MixingRound) -> Iterator[tuple[slice, Tensor]]:
        """Nothing."""
        return iter(())

    def broadcast(self, x: Tensor) -> Tensor:
        """``[0, d]`` to ``[0, d]``."""
        return x.clone()

    def lane(self, name: str, ranks: Sequence[int] | None = None) -> Lane:
        """Refused: who is not here cannot tell who is.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"make lane {name!r} from the whole world: every worker must take part in it")

    def start(self, job: Callable[..., Any], *arguments: Any) -> InFlight:
        """Run ``job(*arguments)``, with no rows, at once."""
        in_flight = InFlight(self.traffic, job)
        in_flight.run(arguments, debug=False)
        return in_flight
