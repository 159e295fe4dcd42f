"""The result of a job on a lane, on its way; and the checks of what a job owes its caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from disttrain.worlds.traffic import Traffic

LETTING_GO_SECONDS = 0.5


class LaneError(RuntimeError):
    """An algorithm broke a rule of lanes; only worlds in debug mode look."""


class LaneThread(threading.Thread):
    """A lane's own. What it waits for, on another lane, is not exposed: training goes on beside it."""


class InFlight:
    """A started job's result, to be taken once.

    Args:
        traffic: counts the seconds that :meth:`take` waits.
        job: what was started.
        lent: the job's arguments, to be held against a copy if the world is in debug mode; else nothing.

    Attributes:
        seconds: that the job took, waiting for its turn aside; of rows, which wait for nobody, 0.
        waited_seconds: that :meth:`take` waited for it.
    """

    def __init__(self, traffic: Traffic, job: Callable[..., Any], lent: tuple[Any, ...] = ()) -> None:
        self.job, self._traffic, self._future, self._taken = job, traffic, Future[Any](), False
        self._lent = [(each, each.clone()) for each in tensors_in(lent)]
        self.seconds = self.waited_seconds = 0.0

    def take(self, timeout_seconds: float | None = None) -> Any:
        """Wait for the result, and return it.

        Args:
            timeout_seconds: how long to wait at most; None: as long as the backend's timeout lets the job run.

        Raises:
            RuntimeError: if it was taken before, or what the job raised.
            TimeoutError: if the time is over; the job goes on, and its result can be taken later.
            LaneError: if somebody wrote to the job's arguments meanwhile (in debug mode).
        """
        if self._taken:
            raise RuntimeError(f"the result of {name_of(self.job)} was taken already")
        start = time.perf_counter()
        try:
            result = self._future.result(timeout_seconds)
        finally:
            waited = time.perf_counter() - start
            self.waited_seconds += waited
            if not isinstance(threading.current_thread(), LaneThread):
                self._traffic.expose(waited, name_of(self.job))
        self._taken = True
        self._check_lent()
        return result

    def raise_if_failed(self) -> None:
        """Raise what the job raised, if it has ended so already; waits for nothing."""
        if self._future.done():
            self._future.result()

    def _check_lent(self) -> None:
        lent, self._lent = self._lent, []
        for tensor, copy in lent:
            if not _same_bits(tensor, copy):
                raise LaneError(f"somebody wrote to an argument of {name_of(self.job)}, {list(tensor.shape)}, which was lent to "
                                "its lane until take(): give the job a copy")  # fmt: skip

    def as_torch_future(self) -> torch.futures.Future[Any]:
        """The same result as a future of torch's, for DDP; it cannot be taken then."""
        assert not self._taken
        self._taken = True
        ours: torch.futures.Future[Any] = torch.futures.Future()

        def pass_on(done: Future[Any]) -> None:
            try:
                result = done.result()
                self._check_lent()
            except BaseException as error:  # what is raised here would only be logged, and DDP would wait for ever
                ours.set_exception(error)
            else:
                ours.set_result(result)

        self._future.add_done_callback(pass_on)
        return ours

    def run(self, arguments: tuple[Any, ...], debug: bool) -> BaseException | None:
        """Do the job now, for the lane; returns what it raised."""
        start = time.perf_counter()
        try:
            with torch.no_grad():
                result = _owned(self.job(*arguments), self.job) if debug else self.job(*arguments)
            self.seconds = time.perf_counter() - start  # before anybody can take the result
            self._future.set_result(result)
        except BaseException as error:
            self.fail(error)
            return error
        return None

    def fail(self, error: BaseException) -> None:
        """Deliver an error instead of a result."""
        self._future.set_exception(error)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_in(each)


def _owned(result: Any, job: Callable[..., Any]) -> Any:
    """A copy of a job's result, after a look whether somebody else holds memory of it; to be handed the only reference.

    Raises:
        LaneError: if so.
    """
    shapes = [list(tensor.shape) for tensor in tensors_in(result)]
    memories = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors_in(result)]  # type: ignore[no-untyped-call]
    copy = _copied(result)
    del result
    # gloo's own thread lets go of a message a moment after the message is complete.
    patience = time.monotonic() + LETTING_GO_SECONDS
    for shape, memory in zip(shapes, memories, strict=True):
        while not memory.expired() and time.monotonic() < patience:  # type: ignore[no-untyped-call]
            time.sleep(1e-3)
        if not memory.expired():  # type: ignore[no-untyped-call]
            raise LaneError(f"the result {shape} of {name_of(job)} shares memory with a tensor that lives on (its arguments, or "
                            "the algorithm's state), which later steps overwrite: return a copy")  # fmt: skip
    return copy


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        copies = [_copied(each) for each in value]
        return type(value)(*copies) if hasattr(value, "_fields") else type(value)(copies)
    return value


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))  # NaN equals itself


def name_of(job: Callable[..., Any]) -> str:
    """What to call a job in a message."""
    return str(getattr(job, "__qualname__", type(job).__qualname__))
