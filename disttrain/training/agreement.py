"""What the workers must know of each other besides the algorithm: the mean loss, and whether somebody was told to stop.

The facts travel through the strategy, in steps that all workers derive from agreed numbers. How many steps from one exchange
to the next is agreed too, about one a second, because workers that each derive it from their own clock drift apart and hang.

Under a strategy whose workers do not wait for each other in every step, they do not wait for facts either: what is sent in one
such step is taken in the next, so a stop request is heard after two. One of these exchanges is always under way, so a worker that
is lost is noticed within a step. What is logged as the loss is each worker's own there, beside ``mean_loss``, the last mean.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from disttrain.strategies.base import Strategy
from disttrain.worlds.in_flight import InFlight

SECONDS_BETWEEN = 1.0  # a stop request waits that long; an exchange is 32 bytes
SECONDS_BETWEEN_LATE = 3.0  # it waits twice as long; who is behind by more than that is waited for


@dataclass
class LossMean:
    """A running mean."""

    total: float = 0.0
    count: float = 0.0

    def state(self) -> list[float]:
        """Sum and count, for a checkpoint."""
        return [self.total, self.count]

    def add(self, total: float, count: float) -> None:
        """Include ``count`` more losses of this sum."""
        self.total, self.count = self.total + total, self.count + count

    def take(self) -> float:
        """The mean since the last call."""
        mean = self.total / self.count if self.count else float("nan")
        self.total = self.count = 0.0
        return mean


class Agreement:
    """Exchanges losses and stop requests; called in every step, exchanges in few.

    Args:
        strategy: carries the facts.
        log_every: an exchange that is waited for happens at least at every multiple of it, so that the logged loss is of exactly
            these steps.
        last_step: where the run is going to stop; an exchange happens there too.
        step: where it starts.

    Attributes:
        own: this worker's mean loss, not exchanged yet.
        loss: the mean loss since it was last taken: the agreed one, or where facts are late this worker's own.
        mean_loss: where facts are late, the workers' mean that has arrived last; None before.
        stop: whether some worker had a stop request at the last exchange.
    """

    def __init__(self, strategy: Strategy, log_every: int, last_step: int, step: int = 0) -> None:
        self._strategy, self._log_every, self._last_step = strategy, log_every, last_step
        self._since, self._started = step, time.perf_counter()
        self._next = step + 1
        self._flight: InFlight | None = None
        self._late = strategy.agrees_late
        self.own, self.loss, self.stop = LossMean(), LossMean(), False
        self.mean_loss: float | None = None

    def step(self, step: int, loss: float, stop_requested: bool, exchange: bool = False) -> None:
        """Note this worker's loss in ``step``; exchange if it is time, or if ``exchange`` (on all workers alike).

        Raises:
            RuntimeError: if another worker was lost.
        """
        if self._strategy.agrees_late:
            if not self._late:  # what was not agreed at once, at the end of a warm-up, is not to be lost for the record
                self.loss.add(*self.own.state())
            self._late = True
            self.loss.add(loss, 1.0)
        self.own.add(loss, 1.0)
        if self._late:
            self._step_late(step, stop_requested)
        elif step >= self._next or exchange:
            total, count, until_next = self._heard(self._strategy.agree(self._facts(step, stop_requested, SECONDS_BETWEEN)))
            self.loss.add(total, count)
            next_log = step - step % self._log_every + self._log_every
            self._next = min(step + until_next, next_log, max(self._last_step, step + 1))

    def _step_late(self, step: int, stop_requested: bool) -> None:
        """Take what was sent in the last such step, and send again."""
        if self._flight is not None:
            self._flight.raise_if_failed()
        if step < self._next:
            return
        flight, self._flight = self._flight, None
        until_next = 1
        if flight is not None:
            total, count, until_next = self._heard(flight.take())
            self.mean_loss = total / count
        if step < self._last_step and not self.stop:  # else nothing is left on the way
            self._flight = self._strategy.agree_later(self._facts(step, stop_requested, SECONDS_BETWEEN_LATE))
        self._next = min(step + until_next, max(self._last_step, step + 1))

    def _facts(self, step: int, stop_requested: bool, seconds_between: float) -> Tensor:
        """This worker's, ``[1, 4]``, since they were last asked for."""
        seconds_per_step = (time.perf_counter() - self._started) / max(1, step - self._since)
        until_next = max(1.0, seconds_between / seconds_per_step)
        mine = [self.own.total, self.own.count, float(stop_requested), min(until_next, 1e6)]
        self.own, self._since, self._started = LossMean(), step, time.perf_counter()
        return torch.tensor([mine], dtype=torch.float64, device=self._strategy.x.device)

    def _heard(self, means: Tensor) -> tuple[float, float, int]:
        """Sum and count of losses, and the steps to the next exchange."""
        total, count, stop, until_next = means[0].tolist()
        self.stop = stop > 0
        return total, count, int(until_next)

    @property
    def metrics(self) -> dict[str, float]:
        """What is to be recorded beside the loss."""
        return {} if self.mean_loss is None else {"mean_loss": self.mean_loss}
