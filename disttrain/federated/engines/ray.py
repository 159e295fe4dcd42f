"""Blocks on Ray actors, on this machine or a cluster.

The driver keeps everything: server, clients' states, which blocks are where. An actor gets a block with its clients' states and
gives back its sums and new states, so one that dies takes nothing with it, and results are added in the blocks' order, so their
bits are those of one process, for any number of actors.

::

    an actor dies                 a new one takes its place; the block is computed again, at most ``retries`` times
    a block is past its deadline  its clients count as lost; its answer, should it come, is nobody's; the actor, if it is still
                                  busy when it is needed, is killed and replaced
    the clients' code raises      the run ends: it would raise again

Ray restarts nothing and repeats nothing by itself: an actor that Ray restarts must be told its job again, and while it starts its
calls fail in other ways than when it is gone. No wait is without a deadline.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from disttrain.component import Config, UserError
from disttrain.federated.blocks import Block, BlockResult
from disttrain.federated.engines.base import Engine, EngineFailed
from disttrain.federated.engines.ray_cluster import Cluster, cpus_here
from disttrain.federated.engines.ray_worker import BlockWorker, Raised, packed
from disttrain.quantities import Duration

FETCH_SECONDS = 60.0
"""For an answer that is there already."""


class RayConfig(Config):
    """How blocks are computed on Ray."""

    actors: Annotated[int, Field(ge=1)] | None = None
    """Processes; null: as many as the CPUs allow and a round's blocks can use. Each takes launch.threads CPUs, by default one."""
    address: str | None = None
    """Of a cluster, host:port or auto; null: a Ray of its own on this machine."""
    compute: Literal["auto", "serial", "batched"] = "auto"
    """How an actor computes a block; as federated.engine."""
    block_timeout: Duration = Field(600.0, gt=0)
    """After which the clients of a block are given up."""
    start_timeout: Duration = Field(60.0, gt=0)
    """For a cluster to answer, and for an actor to be ready."""
    retries: int = Field(2, ge=0)
    """How often a block is computed again whose actor has died."""

    def check_room(self, threads: int, cpus: int, place: str) -> None:
        """Raise UserError if there are fewer CPUs than the actors need."""
        if self.actors is not None and self.actors * threads > cpus:
            raise UserError(
                f"federated.ray.actors={self.actors} with launch.threads={threads} need {self.actors * threads} CPUs, and "
                f"{place} has {cpus}: take at most {cpus // threads} actors"
            )
        if threads > cpus:
            raise UserError(f"launch.threads={threads} is more than the {cpus} CPUs of {place}, so no actor could start")

    def check_room_here(self, threads: int) -> None:
        """The same before a Ray of its own is started."""
        self.check_room(threads, cpus_here(), "this machine")


@dataclass
class _Slot:
    """An actor and what it is busy with.

    Args:
        actor: its handle.
        call: the reference of the answer that it owes; None: it is idle.
        deadline: of that answer.
        block: the number of the block that it computes; None: it starts, or its answer is no longer wanted.
        starting: whether it is to become ready first.
        failures: to start, in a row.
    """

    actor: Any
    call: Any
    deadline: float
    block: int | None = None
    starting: bool = True
    failures: int = 0

    @property
    def idle(self) -> bool:
        """Whether it can be given a block."""
        return self.call is None

    @property
    def stuck(self) -> bool:
        """Whether it computes what nobody waits for."""
        return self.call is not None and not self.starting and self.block is None


class RayEngine:
    """Computes blocks on actors as ``inner`` would in this process.

    Args:
        inner: computes them there; it is sent to each actor once.
        cluster: joined already; see :func:`~disttrain.federated.engines.ray_cluster.joined`.
        config: of the section ``federated.ray``.
        threads: of each actor.
        most_blocks: of a round; more actors are not of use.
        say: is told when actors are lost.

    Raises:
        UserError: if the actors need more CPUs than there are.
    """

    def __init__(
        self,
        inner: Engine,
        cluster: Cluster,
        config: RayConfig,
        threads: int = 1,
        most_blocks: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        config.check_room(threads, cluster.cpus, cluster.place)
        possible = cluster.cpus // threads
        self.num_actors = config.actors or min(possible, most_blocks or possible)
        self._inner, self._config, self._threads, self._say = inner, config, threads, say
        self._slots: list[_Slot] = []
        self._job: Any = None

    def run(self, blocks: Sequence[Block]) -> list[BlockResult | None]:
        """The results in the order of the blocks; None where it was lost.

        Raises:
            EngineFailed: if the clients' code raises, cannot be sent, or no actor is left.
            UserError: if the clients' code raises one.
        """
        import ray

        if self._job is None:
            try:
                self._job = ray.put(self._inner)
            except TypeError as error:  # what pickle has against it, over several lines
                reason = str(error).splitlines()[0]
                raise EngineFailed(f"model, objective or data cannot be sent to Ray actors: {reason}") from None
            self._slots = [self._new_slot() for _ in range(self.num_actors)]
        return _Round(self, blocks).finish()

    def close(self) -> None:
        """End all actors, at once."""
        import ray

        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots, self._job = [], None

    def _new_slot(self, failures: int = 0) -> _Slot:
        import ray

        options = {"num_cpus": self._threads, "max_restarts": 0, "max_task_retries": 0}
        actor = ray.remote(**options)(BlockWorker).remote()
        call = actor.start.remote([self._job], self._threads, sys.path)
        return _Slot(actor, call, time.monotonic() + self._config.start_timeout, failures=failures)

    def _replace(self, slot: _Slot, failures: int = 0) -> None:
        import ray

        ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._new_slot(failures)

    def _give_up(self, slot: _Slot, why: str) -> None:
        """Go on without an actor that does not start."""
        import ray

        ray.kill(slot.actor)
        self._slots.remove(slot)
        if not self._slots:
            raise EngineFailed(f"no Ray actor is left to compute on: the last {why}")
        self._say(f"warning: a Ray actor {why}; going on with {len(self._slots)}")


class _Round:
    """One call of :meth:`RayEngine.run`."""

    def __init__(self, engine: RayEngine, blocks: Sequence[Block]) -> None:
        import ray

        self._engine, self._config, self._blocks = engine, engine._config, blocks
        self._results: list[BlockResult | None] = [None] * len(blocks)
        self._waiting = deque(range(len(blocks)))
        self._failures: Counter[int] = Counter()
        self._messages = {id(block.message): block.message for block in blocks}
        self._references = {key: ray.put(packed(message)) for key, message in self._messages.items()}

    def finish(self) -> list[BlockResult | None]:
        """Hand out and take in, until every block is computed or lost."""
        while True:
            self._hand_out()
            if not self._waiting and all(slot.block is None for slot in self._engine._slots):
                return self._results
            self._take_in()

    def _hand_out(self) -> None:
        """Every idle actor a block; actors that are needed and stuck are replaced."""
        for slot in self._engine._slots:
            if slot.idle and self._waiting:
                number = self._waiting.popleft()
                block = self._blocks[number]
                lean = packed(replace(block, message={}))
                slot.call = slot.actor.run.remote(self._references[id(block.message)], lean)
                slot.block, slot.deadline = number, time.monotonic() + self._config.block_timeout
        starting = sum(slot.starting for slot in self._engine._slots)
        for slot in [slot for slot in self._engine._slots if slot.stuck][: max(0, len(self._waiting) - starting)]:
            self._engine._replace(slot)

    def _take_in(self) -> None:
        """Wait for the next answer, or for the next deadline."""
        import ray

        calls = {slot.call: slot for slot in self._engine._slots if slot.call is not None}
        nearest = min(slot.deadline for slot in calls.values() if not slot.stuck)
        done, _ = ray.wait(list(calls), num_returns=1, timeout=max(0.0, nearest - time.monotonic()))
        for call in done:
            self._settle(calls.pop(call))
        now = time.monotonic()
        for slot in calls.values():
            if not slot.stuck and slot.deadline <= now:
                self._expire(slot)

    def _expire(self, slot: _Slot) -> None:
        if slot.starting:
            self._engine._give_up(slot, f"was not ready within {self._config.start_timeout:g} s (federated.ray.start_timeout)")
        slot.block = None

    def _settle(self, slot: _Slot) -> None:
        """An answer is there, or the actor is gone."""
        import ray

        try:
            answer = ray.get(slot.call, timeout=FETCH_SECONDS)
        except ray.exceptions.RayTaskError as error:  # not even the arguments could be read
            answer = Raised((str(error.cause).strip().splitlines() or [""])[0], False)
        except ray.exceptions.RayError:
            self._lose(slot)
            return
        number, slot.call, slot.block = slot.block, None, None
        if isinstance(answer, Raised):
            self._refuse(answer, number, slot.starting)
        elif number is not None:
            self._results[number] = answer
        slot.starting, slot.failures = False, 0

    def _refuse(self, answer: Raised, number: int | None, starting: bool) -> None:
        """End the run by what an actor has raised, unless nobody waits for that."""
        if answer.mistake:
            raise UserError(answer.text)
        if starting:
            raise EngineFailed(f"a Ray actor could not load the model and data: {answer.text}")
        if number is not None:
            raise EngineFailed(f"clients' computation failed on a Ray actor: {answer.text}; {self._who(number)}")

    def _lose(self, slot: _Slot) -> None:
        """An actor has died."""
        if slot.starting and slot.failures >= self._config.retries:
            self._engine._give_up(slot, "died while it started")
            return
        if slot.block is not None:
            self._failures[slot.block] += 1
            if self._failures[slot.block] <= self._config.retries:
                self._waiting.appendleft(slot.block)
        self._engine._replace(slot, slot.failures + 1 if slot.starting else 0)

    def _who(self, number: int) -> str:
        clients = self._blocks[number].clients.tolist()
        listed = ", ".join(map(str, clients[:4])) + (", …" if len(clients) > 4 else "")
        return f"in the block of client{'s' if len(clients) > 1 else ''} {listed}"
