"""The seam of a strategy: what the workers exchange, and when.

A strategy is written over vectors ``[L, d]``, where ``L`` workers live in this process, and sees the others only through its
:class:`~disttrain.worlds.World`. It knows neither DDP nor processes: ``attach.py`` drives it around a real training loop.
The defaults here are "no communication".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor

from disttrain.component import ComponentConfig, Registry
from disttrain.compression.reduce import Dense, Reducer
from disttrain.parameters import Layout, Unit
from disttrain.worlds.in_flight import InFlight
from disttrain.worlds.world import Lane, World


class Strategy:
    """A worker's side of an algorithm; a subclass overrides what it needs.

    The driver calls ``begin`` once; in every step ``reduce`` during backward, ``before_step`` and, unless that is False, the
    optimizer's step and ``after_step``; and ``finish`` at the end.
    """

    reducer: Reducer | None = None
    """How gradients are averaged; None if they are not, or if ``reduce`` is the strategy's own."""
    replicated: bool = False
    """Whether parameters and optimizer state are equal on all workers after every step."""
    one_result: bool = False
    """Whether ``evaluation()`` is equal on all workers in mid-run, as it is if they are replicated."""
    lockstep: bool = False
    """Whether no worker can be more than a round ahead of another, so that all can agree on a step to stop after."""
    period: int = 1
    """Local steps in a round."""
    group_size: int = 1
    """Workers that train as one; the number of all workers must be a multiple of it."""
    find_unused_parameters: bool = False
    """Whether a parameter may go without a gradient in a step."""
    survives_peers: bool = False
    """Whether training goes on when another worker is lost."""
    total_steps: int | None = None
    """Local steps of the whole run; a driver that knows it says so before :meth:`begin`."""
    loss_scale: Callable[[], float] | None = None
    """What a GradScaler has multiplied this step's loss by; a strategy that keeps gradients keeps them without it."""

    def begin(self, x: Tensor, layout: Layout, world: World, seed: int = 0) -> None:
        """Start from the live parameters ``x [L, d]``, equal on all workers; ``seed`` is of all that is drawn."""
        assert self.reducer is None or type(self).reduce is Strategy.reduce, "give a reducer or a reduce() of your own, not both"
        self.x, self.layout, self.world, self.seed = x, layout, world, seed
        # A dense mean goes through torch's own asynchrony: a lane would cost a group and a thread.
        self.gradients = world.lane("gradients") if self.reduces_gradients and self.reducer != Dense() else None

    def reduce(self, units: Sequence[Unit], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Turn some parameters' own gradients, each ``[L, d_unit]``, into what the optimizer sees.

        That is ``[L, d_unit]``, or ``[1, d_unit]`` where it is equal for all. It runs on the lane ``self.gradients``, during
        backward, for one of DDP's buckets after the other: which parameters share a bucket must not change results.
        """
        return list(gradients)

    def before_step(self) -> bool:
        """Land what is due before the optimizer's step. False: every worker skips this step."""
        return True

    def after_step(self) -> None:
        """A local step is done: close the round if it is full, and post the next exchange."""

    def agree(self, values: Tensor) -> Tensor:
        """Bring small float64 facts ``[L, k]`` (losses, a stop request) to the workers' mean, or keep each worker's own.

        The training loop issues no collective of its own: what it has to agree on travels here, in steps that are
        the same on every worker. A strategy without communication returns ``values``.
        """
        return values

    def agree_later(self, values: Tensor) -> InFlight:
        """The same without waiting, where :attr:`agrees_late`: its result is to be taken in a later step, the same on all."""
        raise NotImplementedError(f"{type(self).__name__} does not agree late")

    def skip(self, steps: int) -> None:
        """Go on as if so many steps had been made, where :attr:`survives_peers`: the others made them while this was away."""
        raise NotImplementedError(f"{type(self).__name__} does not survive the loss of workers")

    def join(self) -> None:
        """Go on from another worker's state, where :attr:`survives_peers`: what it had under way is not this worker's."""
        raise NotImplementedError(f"{type(self).__name__} does not survive the loss of workers")

    def evaluation(self) -> Tensor:
        """The parameters ``[1, d]`` that are validated and exported in mid-run."""
        return self.x[:1]

    def finish(self) -> Tensor:
        """The result ``[1, d]``, with everything in flight landed and merged."""
        return self.evaluation()

    def adopt(self, saved: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over what every worker had in ``local``, in a run with another number of workers or other settings.

        ``shared`` is restored already.

        Raises:
            ValueError: if that cannot be.
        """
        if self.local:
            raise ValueError("each worker has a state of its own")

    @property
    def description(self) -> str:
        """What was decided, to be said once at the start; empty if the name says it all."""
        return ""

    @property
    def warning(self) -> str:
        """What may go wrong with these settings, to be said once at the start; empty if nothing is known."""
        return ""

    @property
    def temporary_copies(self) -> float:
        """Copies of all workers' vectors that :meth:`reduce` needs for a while, beside those of a driver."""
        return 1.0 + self.reducer.temporary_copies if self.reducer is not None else 0.0

    @property
    def reduces_gradients(self) -> bool:
        """Whether ``reduce`` does anything: if not, a driver does not install a hook."""
        return self.reducer is not None or type(self).reduce is not Strategy.reduce

    @property
    def agrees_late(self) -> bool:
        """Whether workers should not wait for each other now, not even for small facts."""
        return False

    @property
    def gradients_due(self) -> bool:
        """Whether gradients are reduced in this step, if they ever are; drivers ask before backward."""
        return self.reduces_gradients

    @property
    def gradient_lanes(self) -> Sequence[Lane]:
        """Among whom a dense mean of gradients is taken in this step, every worker in one of them; none: among all."""
        return ()

    @property
    def metrics(self) -> dict[str, float]:
        """What is worth recording of the exchange, now."""
        return {}

    @property
    def shared(self) -> dict[str, Tensor]:
        """State ``[1, ...]`` equal on all workers; saved once. Restored by copying into these very tensors."""
        return {}

    @property
    def local(self) -> dict[str, Tensor]:
        """State ``[L, ...]``, a row for each worker; saved by each. Restored by copying into these very tensors."""
        return {}


class StrategyConfig(ComponentConfig):
    """What every strategy's config has."""

    buffers: Literal["local", "average", "recalibrate"] = "local"
    """What becomes of buffers such as BatchNorm's statistics: `local`: each worker keeps its own, and worker 0's are exported;
    `average`: their mean (integer ones aside) is exported; `recalibrate`: recomputed at the end, from training batches."""

    def check_steps(self, steps: int) -> None:
        """Raise ValueError if a run of so many steps makes no sense."""

    def check_world(self, world_size: int) -> None:
        """Raise ValueError if so many workers cannot train so."""

    def check_survival(self, world_size: int) -> None:
        """Raise ValueError unless training could go on when some of so many workers are lost."""
        if not self.build().survives_peers:
            raise ValueError(f"name={self.name} cannot go on when a worker is lost: take one whose workers need only some peers, "
                             "such as dpsgd, or leave --on-failure at stop")  # fmt: skip

    def build(self) -> Strategy:
        """The strategy itself, not begun."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")


strategies: Registry[StrategyConfig] = Registry("strategy", default="ddp")
