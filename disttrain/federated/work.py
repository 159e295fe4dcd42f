"""What the clients of one block can do in one round: gradients of their own losses, and a few draws.

An algorithm sees its clients' data through :class:`Work` alone, so it does not know whether a loss is a network's or a quadratic,
nor how many clients are computed at once. Whatever is drawn is named by (seed, stream, round, client): a block that is computed
again, elsewhere or in other company, draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from disttrain import random
from disttrain.compression.base import Compressor

MOST_DRAWS = 2**20
CLIPPING_EPSILON = 1e-6  # of torch.nn.utils.clip_grads_with_norm_


class Problem(Protocol):
    """What the clients minimise: each has a mean loss f_i over samples of its own."""

    sizes: Tensor
    """int64 ``[N]``: how many samples each client has."""

    def gradients(self, y: Tensor, clients: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each client's mean loss ``[L]`` at its own point, and its gradient, a fresh tensor ``[L, d]``.

        Args:
            y: ``[L, d]``, not changed.
            clients: int64 ``[L]``.
            draws: int64 ``[L, b]``, uniform in [0, 2⁶³): which samples, modulo the client's number of them; None: all it has.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """What is the same for all clients of a round.

    Args:
        num_clients: N, of the whole federation.
        seed: the run's.
        steps: K, local steps.
        lr: η_l, of local steps in this round.
        batch_size: samples of a local step, drawn with replacement.
        large_batch: samples of a large batch, drawn with replacement; None: all that the client has, once.
        momentum: of local steps, where the algorithm allows it.
        weight_decay: the same; added to the gradient, times the parameters.
        clip_norm: a sampled gradient of larger Euclidean norm is scaled down to it; None: never.
        round: its number, from 0.
    """

    num_clients: int
    seed: int = 0
    steps: int = 10
    lr: float = 0.1
    batch_size: int = 1
    large_batch: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    round: int = 0


@dataclass(frozen=True)
class Part:
    """One vector of each client's reply, as the server has it.

    Args:
        values: ``[L, d]``, what a payload decodes to.
        weights: ``[L]``, by which the server adds them up; 0: this client has sent no such vector.
        num_bytes: int64 ``[L]``, what was sent for it.
    """

    values: Tensor
    weights: Tensor
    num_bytes: Tensor


@dataclass
class Ledger:
    """What the clients of a block have spent, and seen."""

    evaluations: Tensor
    """int64 ``[L]``: gradients of single samples."""
    loss_sums: Tensor
    """float64 ``[L]``: of the losses of sampled batches, before each step."""
    losses: Tensor
    """int64 ``[L]``: how many they are."""

    @classmethod
    def blank(cls, num_clients: int) -> Ledger:
        """Nothing yet."""
        counts = torch.zeros(num_clients, dtype=torch.int64)
        return cls(counts, torch.zeros(num_clients, dtype=torch.float64), counts.clone())


@dataclass(frozen=True)
class Work:
    """The clients of one block in one round.

    Args:
        problem: whose losses.
        plan: of the round.
        clients: int64 ``[L]``.
        rows: int64 ``[L]``, where they stand in the ledger; None: they are the whole block.
        ledger: of the block.
    """

    problem: Problem
    plan: Plan
    clients: Tensor
    rows: Tensor | None = None
    ledger: Ledger = field(default_factory=lambda: Ledger.blank(0))

    @classmethod
    def of_block(cls, problem: Problem, plan: Plan, clients: Tensor) -> Work:
        """That of a whole block, with a ledger of its own."""
        return cls(problem, plan, clients, None, Ledger.blank(len(clients)))

    def among(self, which: Tensor) -> Work:
        """The same for some of the clients, booleans ``[L]``; what they spend stands in the same ledger."""
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        return Work(self.problem, self.plan, self.clients[which], rows[which], self.ledger)

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def sizes(self) -> Tensor:
        """How many samples each client has: int64 ``[L]``."""
        return self.problem.sizes[self.clients]

    def gradient(self, y: Tensor, step: int) -> Tensor:
        """Gradients at ``y [L, d]`` of the clients' minibatches of a local step; the same step draws the same samples."""
        b = self.plan.batch_size
        if self._draws is not None and step < self.plan.steps:
            draws = self._draws[:, step * b : (step + 1) * b]
        else:
            draws = random.bits(self._batch_keys, b, start=step * b)
        losses, gradients = self.problem.gradients(y, self.clients, draws)
        self._note(torch.full_like(self.clients, b), losses)
        return self._clipped(gradients)

    def large_gradient(self, y: Tensor) -> Tensor:
        """Gradients at ``y [L, d]`` of large batches, by default of all local data."""
        b = self.plan.large_batch
        draws = None if b is None else random.bits(self._keys(random.Stream.LARGE_BATCH), b)
        losses, gradients = self.problem.gradients(y, self.clients, draws)
        self._note(self.sizes if b is None else torch.full_like(self.clients, b), losses)
        return self._clipped(gradients)

    def send(
        self, x: Tensor, compressor: Compressor | None = None, weights: Tensor | None = None, who: Tensor | None = None
    ) -> Part:
        """What the server gets when the clients send ``x [L, d]``.

        Args:
            x: one vector of each client.
            compressor: by which it is encoded, all of it as one vector, and decoded again; None: sent as it is.
            weights: ``[L]``; None: all count the same.
            who: booleans ``[L]``; the others send nothing. None: all do.
        """
        values, num_bytes = x, x.shape[-1] * x.element_size()
        if compressor is not None:
            keys = self._keys(random.Stream.COMPRESSION) if compressor.is_random else None
            payload = compressor.encode(x, keys)
            values, num_bytes = compressor.decode(payload, x.shape[-1]).to(x.dtype), payload.shape[-1]
        sends = torch.ones(len(self), dtype=torch.bool) if who is None else who
        weights = torch.ones(len(self), dtype=torch.float64) if weights is None else weights.double()
        return Part(values, weights * sends, num_bytes * sends.long())

    @cached_property
    def _batch_keys(self) -> Tensor:
        """The same for all local steps."""
        return self._keys(random.Stream.BATCHES)

    @cached_property
    def _draws(self) -> Tensor | None:
        """Of all local steps at once, which takes little longer than of one, unless they are very many."""
        each = self.plan.batch_size * self.plan.steps
        return random.bits(self._batch_keys, each) if len(self) * each <= MOST_DRAWS else None

    def _keys(self, stream: random.Stream) -> Tensor:
        return random.key(self.plan.seed, stream, self.plan.round, self.clients)

    def _clipped(self, gradients: Tensor) -> Tensor:
        """torch's formula, client by client. It is the sampled gradient that is clipped, not what is made of it, so that
        control variates stay means of gradients."""
        if self.plan.clip_norm is None:
            return gradients
        norms = torch.linalg.vector_norm(gradients, dim=-1, keepdim=True)
        clipped: Tensor = gradients * (self.plan.clip_norm / (norms + CLIPPING_EPSILON)).clamp(max=1.0)
        return clipped

    def _note(self, evaluations: Tensor, losses: Tensor) -> None:
        if self.rows is None:
            self.ledger.evaluations += evaluations
            self.ledger.loss_sums += losses.double()
            self.ledger.losses += 1
            return
        self.ledger.evaluations[self.rows] += evaluations
        self.ledger.loss_sums[self.rows] += losses.double()
        self.ledger.losses[self.rows] += 1
