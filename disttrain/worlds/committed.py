"""A mean over the living that all of them have, or none.

A worker that is lost in the middle of an all-reduce leaves some with a result, some with an error and some waiting for ever. So
every attempt has a process group of its own, and counts only once all of its members have a result; if one of them is lost
before, all try again without it. The store keeps the decision, which is made once.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from disttrain.worlds.register import Register
from disttrain.worlds.store import PrefixStore, TCPStore

DONE, GIVEN_UP = "done", "given up"
POLL_SECONDS = 0.005
Attempt = tuple[Tensor, "dist.ProcessGroupGloo"]
"""A mean, and its group, which stays until all members have the mean: to close it sooner could break the others' reading."""


class CommittedMean:
    """Called by all the living, equally often.

    Args:
        store: the launcher's.
        register: says who lives.
        rank: this worker.
        timeout: how long an attempt may take that fails though nobody is lost.

    Attributes:
        calls: how many there were.
    """

    def __init__(self, store: TCPStore, register: Register, rank: int, timeout: timedelta) -> None:
        self._store, self._register, self._rank, self._timeout, self.calls = store, register, rank, timeout, 0

    def __call__(self, x: Tensor) -> Tensor:
        """The mean ``[1, d]``, fresh, of the living workers' ``x [1, d]``.

        Raises:
            RuntimeError: if it fails for another reason than a loss.
        """
        self.calls += 1
        while True:
            members = self._register.record.survivors
            name = f"mean/{self.calls}/{'-'.join(map(str, members))}"
            attempt = self._start(name, members, x.to("cpu", copy=True))
            if self._decide(name, members, attempt) == DONE:
                mean, _ = attempt.result()
                return mean.to(x.device)

    def _start(self, name: str, members: list[int], x: Tensor) -> Future[Attempt]:
        attempt: Future[Attempt] = Future()

        def make() -> None:
            try:
                attempt.set_result(self._mean(name, members, x))
            except RuntimeError as error:
                attempt.set_exception(error)

        threading.Thread(target=make, name=name, daemon=True).start()
        return attempt

    def _mean(self, name: str, members: list[int], x: Tensor) -> Attempt:
        store = PrefixStore(name, self._store.clone())  # type: ignore[attr-defined]
        # A member may be a while on its way; whether it still comes is the launcher's to say.
        store.set_timeout(timedelta(days=1))
        group = dist.ProcessGroupGloo(store, members.index(self._rank), len(members), timedelta(days=1))
        x.mul_(1.0 / len(members))  # as in TorchWorld, bit by bit
        group.allreduce([x]).wait()  # type: ignore[attr-defined]
        return x, group

    def _decide(self, name: str, members: list[int], attempt: Future[Attempt]) -> str:
        """Wait for what becomes of an attempt: :data:`DONE` or :data:`GIVEN_UP`, the same for all its members."""
        said, failed_since, outcome = False, None, f"{name}/outcome"
        while not self._store.check([outcome]):
            if attempt.done() and attempt.exception() is None and not said:
                said = True
                if self._store.add(f"{name}/members", 1) == len(members):
                    return self._settle(outcome, DONE)
            if self._register.record.survivors != members:
                return self._settle(outcome, GIVEN_UP)
            if attempt.done() and attempt.exception() is not None:
                failed_since = failed_since or time.monotonic()
                if time.monotonic() - failed_since > self._timeout.total_seconds():
                    attempt.result()
            time.sleep(POLL_SECONDS)
        return self._store.get(outcome).decode()

    def _settle(self, outcome: str, proposal: str) -> str:
        """Decide, unless somebody has decided already; what was decided."""
        return self._store.compare_set(outcome, "", proposal).decode()
