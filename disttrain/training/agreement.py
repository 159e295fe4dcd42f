"""What the workers must know of each other besides the algorithm: the mean loss, and whether somebody was told to stop.

The facts travel through the strategy, in steps that all workers derive from agreed numbers. How many steps from one exchange
to the next is agreed too, about one a second, because workers that each derive it from their own clock drift apart and hang.

Where a strategy works in rounds, the facts go along with the rounds' exchanges, so that they make nobody wait: a stop request is
heard when its round lands, and what is logged as the loss is each worker's own, beside ``round_loss``, the mean over all workers.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from disttrain.strategies.base import Strategy

SECONDS_BETWEEN = 1.0  # a stop request waits that long; an exchange is 32 bytes


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
        log_every: an exchange happens at least at every multiple of it, so that the logged loss is of exactly these steps.
        last_step: where the run is going to stop; an exchange happens there too.
        step: where it starts.

    Attributes:
        own: this worker's mean loss, not exchanged yet.
        loss: the agreed mean loss since it was last taken.
        stop: whether some worker had a stop request at the last exchange.
        round_loss: the agreed mean loss of the last round that has landed; None before, and where facts do not travel so.
    """

    def __init__(self, strategy: Strategy, log_every: int, last_step: int, step: int = 0) -> None:
        self._strategy, self._log_every, self._last_step = strategy, log_every, last_step
        self._since, self._started = step, time.perf_counter()
        self._next = step + 1
        self.own, self.loss, self.stop = LossMean(), LossMean(), False
        self.round_loss: float | None = None
        self._heard: LossMean | None = None if step else LossMean()  # after a resumption, what had been heard is not known

    def step(self, step: int, loss: float, stop_requested: bool, exchange: bool = False) -> None:
        """Note this worker's loss in ``step``; exchange if it is time, or if ``exchange`` (on all workers alike)."""
        if self._strategy.agrees_by_round:
            self._by_round(loss, stop_requested)
            return
        self.own.add(loss, 1.0)
        if step < self._next and not exchange:
            return
        seconds_per_step = (time.perf_counter() - self._started) / (step - self._since)
        until_next = max(1.0, SECONDS_BETWEEN / seconds_per_step)
        mine = [self.own.total, self.own.count, float(stop_requested), min(until_next, 1e6)]
        row = torch.tensor([mine], dtype=torch.float64, device=self._strategy.x.device)
        total, count, stop, until_next = self._strategy.agree(row)[0].tolist()
        self.own = LossMean()
        self.loss.add(total, count)
        self.stop = stop > 0
        self._since, self._started = step, time.perf_counter()
        next_log = step - step % self._log_every + self._log_every
        self._next = min(step + int(until_next), next_log, max(self._last_step, step + 1))

    def _by_round(self, loss: float, stop_requested: bool) -> None:
        """Send sums over all steps so far, and take the difference of what comes back: nobody need know when they were sent."""
        self.loss.add(loss, 1.0)
        if math.isfinite(loss):
            self.own.add(loss, 1.0)
        if (heard := self._strategy.hear()) is not None:
            total, count, stop = heard[0].tolist()
            before, self._heard = self._heard, LossMean(total, count)
            if before is not None and count > before.count:
                self.round_loss = (total - before.total) / (count - before.count)
            self.stop = self.stop or stop > 0
        mine = [self.own.total, self.own.count, float(stop_requested)]
        self._strategy.say(torch.tensor([mine], dtype=torch.float64, device=self._strategy.x.device))

    @property
    def metrics(self) -> dict[str, float]:
        """What is to be recorded beside the loss."""
        return {} if self.round_loss is None else {"round_loss": self.round_loss}
