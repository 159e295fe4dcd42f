"""The driver of a strategy over rows: what `strategies/attach.py` is around a module, a DDP and an optimizer of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from disttrain.simulation.optimizer import RowOptimizer
from disttrain.simulation.replicas import Replicas
from disttrain.strategies.base import Strategy
from disttrain.worlds import StackedWorld

CLIPPING_EPSILON = 1e-6  # of torch.nn.utils.clip_grads_with_norm_


class Engine:
    """Makes N workers' steps, given their gradients.

    Args:
        replicas: the workers; the strategy begins here.
        strategy: what they exchange, and when.
        world: all of them.
        build_optimizer: makes the optimizer of one worker's module.
        multiplier: learning rate as a share of the peak at update t; None leaves the rates alone.
        clip_norm: gradients of a larger Euclidean norm are scaled down to it; None: never.
        seed: of what the strategy draws.

    Attributes:
        steps: made so far.
        gradient_norms: before clipping, of the last step: ``[N]``, or ``[1]`` where all have the same gradient.
        consecutive_skips: int64 ``[N]``, each worker's steps since it last moved.
    """

    def __init__(
        self,
        replicas: Replicas,
        strategy: Strategy,
        world: StackedWorld,
        build_optimizer: Callable[[nn.Module], Optimizer],
        multiplier: Callable[[int], float] | None = None,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        self.replicas, self.strategy, self.world, self._clip_norm = replicas, strategy, world, clip_norm
        self.optimizer = RowOptimizer(replicas, build_optimizer, multiplier)
        self.steps, self.gradient_norms = 0, torch.full((1,), float("nan"))
        self.consecutive_skips = torch.zeros(len(replicas), dtype=torch.int64)
        strategy.begin(replicas.x, replicas.layout, world, seed)

    @torch.no_grad()
    def step(self, gradients: Tensor) -> None:
        """One step of all workers with their own gradients ``[N, d]``, which may be overwritten.

        A worker whose gradient is not finite does not move. Gradients that were averaged are not finite for all alike.
        """
        self.steps += 1
        gradients = self._reduce(gradients)
        self.gradient_norms = self._clip(gradients)
        finite = (self.gradient_norms < float("inf")).expand(len(self.replicas))
        proceed = self.strategy.before_step()
        moves = finite if proceed else torch.zeros_like(finite)
        self.optimizer.step(gradients, moves)
        self.consecutive_skips = torch.where(moves, 0, self.consecutive_skips + 1)
        if proceed:
            self.strategy.after_step()

    def _reduce(self, gradients: Tensor) -> Tensor:
        """What the optimizers see: ``[N, d]``, or ``[1, d]`` where it is the same for all."""
        strategy = self.strategy
        if not strategy.gradients_due:
            return gradients
        if strategy.gradients is None:
            return self._reduce_whole(gradients)
        job = self._reduce_units if strategy.reducer is None else self._reduce_whole
        reduced: Tensor = strategy.gradients.start(job, gradients).take()
        return reduced

    def _reduce_whole(self, gradients: Tensor) -> Tensor:
        """An elementwise reducer takes all parameters at once, as it takes a bucket of DDP's: without what pads them."""
        units, strategy = self.replicas.layout.units, self.strategy
        assert strategy.reducer is not None
        packed = torch.cat([unit.of(gradients).flatten(1) for unit in units], dim=1)
        if strategy.gradient_lanes:
            reduced = torch.empty_like(packed)
            for lane in strategy.gradient_lanes:
                reduced[lane.rows] = strategy.reducer.reduce(lane, packed[lane.rows])
        else:
            reduced = strategy.reducer.reduce(strategy.gradients or self.world, packed)
        parts: tuple[Tensor, ...] = torch.split(reduced, [unit.numel for unit in units], dim=1)
        return self._lay_out(parts)

    def _reduce_units(self, gradients: Tensor) -> Tensor:
        units = self.replicas.layout.units
        return self._lay_out(self.strategy.reduce(units, [unit.of(gradients).flatten(1) for unit in units]))

    def _lay_out(self, parts: Sequence[Tensor]) -> Tensor:
        rows = max(len(part) for part in parts)
        out = parts[0].new_zeros(rows, self.replicas.layout.d)
        for unit, part in zip(self.replicas.layout.units, parts, strict=True):
            out[:, unit.offset : unit.offset + unit.numel] = part
        return out

    def _clip(self, gradients: Tensor) -> Tensor:
        """The norms ``[R]`` of gradients ``[R, d]``, which are scaled in place; torch's formula, row by row."""
        by_unit = [torch.linalg.vector_norm(unit.of(gradients).flatten(1), dim=1) for unit in self.optimizer.units]
        norms: Tensor = torch.linalg.vector_norm(torch.stack(by_unit, dim=1), dim=1)
        if self._clip_norm is not None:
            gradients *= (self._clip_norm / (norms + CLIPPING_EPSILON)).clamp(max=1.0)[:, None]
        return norms
