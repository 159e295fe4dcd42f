"""What the clients of one block can do in one round: gradients of their own losses, and a few draws.

An algorithm sees its clients' data through :class:`Work` alone, so it does not know whether a loss is a network's or a quadratic,
nor how many clients are computed at once. Whatever is drawn is named by (seed, stream, round, client): a block that is computed
again, elsewhere or in other company, draws the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class ExactProblem(Protocol):
    """One whose local problems have solutions in closed form, such as least squares."""

    def minimise(self, clients: Tensor, centre: Tensor, rho: float) -> Tensor:
        """argmin f_k(x) + ρ/2 ‖x − centre_k‖² of each client, ``[L, d]``."""
        ...

    def move(self, clients: Tensor, x: Tensor, centre: Tensor, rho: float, times: Tensor) -> Tensor:
        """``times [L]`` times x ← argmin f_k(·) − ⟨∇f_k(x), ·⟩ + ρ/2 ‖· − centre_k‖², from ``x [L, d]``; ``[L, d]``."""
        ...


@runtime_checkable
class ScoredProblem(Protocol):
    """One that tells samples apart by their losses."""

    def sample_losses(self, y: Tensor, clients: Tensor) -> list[Tensor]:
        """Each client's loss on every sample it has, at its own point ``y [L, d]``: ``[n_i]`` each, in the order of draws.

        What comes out for a client must not depend on the others.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """What is the same for all clients of a round.

    Args:
        num_clients: N, of the whole federation, those without samples not counted.
        seed: the run's.
        steps: K, local steps.
        lr: η_l, of local steps in this round.
        batch_size: samples of a local step, drawn with replacement.
        large_batch: samples of a large batch, drawn with replacement; None: all that the client has, once.
        momentum: of local steps, where the algorithm allows it.
        weight_decay: the same; added to the gradient, times the parameters.
        clip_norm: a sampled gradient of larger Euclidean norm is scaled down to it; None: never.
        noise_up: variance of the Gaussian noise on each entry of what a client sends.
        noise_down: the same of what it is sent.
        round: its number, from 0.
        rounds: T, of the whole run, where something is paced by them; None: not known.
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
    noise_up: float = 0.0
    noise_down: float = 0.0
    round: int = 0
    rounds: int | None = None


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
    scored: Tensor
    """int64 ``[L]``: samples whose loss alone was computed."""

    @classmethod
    def blank(cls, num_clients: int) -> Ledger:
        """Nothing yet."""
        counts = torch.zeros(num_clients, dtype=torch.int64)
        return cls(counts, torch.zeros(num_clients, dtype=torch.float64), counts.clone(), counts.clone())

    @classmethod
    def joined(cls, ledgers: Sequence[Ledger]) -> Ledger:
        """Those of several blocks as one."""
        return cls(*(torch.cat([getattr(ledger, each.name) for ledger in ledgers]) for each in fields(cls)))

    def part(self, rows: slice) -> Ledger:
        """That of some clients."""
        return Ledger(*(getattr(self, each.name)[rows] for each in fields(self)))


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

    def receive(self, message: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What arrives at the clients of vectors ``[d]`` that are sent to all: ``[L, d]``, with each one's own noise."""
        arrived = {name: vector.expand(len(self), -1) for name, vector in message.items()}
        if self.plan.noise_down:
            for number, (name, rows) in enumerate(arrived.items()):
                arrived[name] = rows + self._noise(random.Stream.NOISE_DOWN, self.plan.noise_down, rows, number)
        return arrived

    def gradient(self, y: Tensor, step: int, clip: bool = True) -> Tensor:
        """Gradients at ``y [L, d]`` of the clients' minibatches of a local step; the same step draws the same samples.

        Args:
            y: not changed.
            step: its number.
            clip: whether the plan's ``clip_norm`` holds; an algorithm that takes differences of gradients must clip what it
                makes of them instead, or they are no differences any more.
        """
        b = self.plan.batch_size
        if self._draws is not None and step < self.plan.steps:
            draws = self._draws[:, step * b : (step + 1) * b]
        else:
            draws = random.bits(self._batch_keys, b, start=step * b)
        losses, gradients = self.problem.gradients(y, self.clients, draws)
        self._note(b, losses)
        return self.clipped(gradients) if clip else gradients

    def large_gradient(self, y: Tensor, number: int = 0) -> Tensor:
        """Gradients at ``y [L, d]`` of large batches, by default of all local data; never clipped, for no step is along them.

        Args:
            y: not changed.
            number: of the batch; the same one draws the same samples.
        """
        b = self.plan.large_batch
        draws = None if b is None else random.bits(self._keys(random.Stream.LARGE_BATCH), b, start=number * b)
        losses, gradients = self.problem.gradients(y, self.clients, draws)
        self._note(self.sizes if b is None else b, losses)
        return gradients

    def losses(self, y: Tensor) -> list[Tensor]:
        """Each client's loss on every sample it has, at ``y [L, d]``: ``[n_i]`` each.

        Raises:
            TypeError: if the problem does not tell samples apart.
        """
        if not isinstance(self.problem, ScoredProblem):
            raise TypeError(f"{type(self.problem).__name__} has no losses of single samples, by which to order them")
        losses = self.problem.sample_losses(y, self.clients)
        self.ledger.scored[slice(None) if self.rows is None else self.rows] += self.sizes
        return losses

    def exact(self) -> ExactProblem:
        """The problem as one with solutions in closed form.

        Raises:
            TypeError: if it has none to offer.
        """
        if not isinstance(self.problem, ExactProblem):
            raise TypeError(f"{type(self.problem).__name__} cannot be minimised in closed form: use local steps")
        return self.problem

    def send(
        self,
        x: Tensor,
        compressor: Compressor | None = None,
        weights: Tensor | None = None,
        who: Tensor | None = None,
        number: int = 0,
    ) -> Part:
        """What the server gets when the clients send ``x [L, d]``.

        Args:
            x: one vector of each client.
            compressor: by which it is encoded, all of it as one vector, and decoded again; None: sent as it is.
            weights: ``[L]``; None: all count the same.
            who: booleans ``[L]``; the others send nothing. None: all do.
            number: of the vector, if a client sends several in a round, whose noises must not be the same.

        Raises:
            ValueError: if a payload were to travel over a noisy link, which adds to entries, not to bytes.
        """
        values, num_bytes = x, x.shape[-1] * x.element_size()
        if compressor is not None:
            keys = self._keys(random.Stream.COMPRESSION) if compressor.is_random else None
            payload = compressor.encode(x, keys)
            values, num_bytes = compressor.decode(payload, x.shape[-1]).to(x.dtype), payload.shape[-1]
        if self.plan.noise_up:
            if compressor is not None:
                raise ValueError("noise is added to entries of vectors that are sent as they are, not to a compressor's payload")
            values = x + self._noise(random.Stream.NOISE_UP, self.plan.noise_up, x, number)
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

    def _noise(self, stream: random.Stream, variance: float, x: Tensor, number: int) -> Tensor:
        d = x.shape[-1]
        noise: Tensor = variance**0.5 * random.normal(self._keys(stream), d, start=number * d)
        return noise.to(x.dtype)

    def clipped(self, gradients: Tensor) -> Tensor:
        """``[L, d]``, of norm ``clip_norm`` at most: torch's formula, client by client.

        Where it is the sampled gradient that is clipped, not what is made of it, control variates stay means of gradients.
        """
        if self.plan.clip_norm is None:
            return gradients
        norms = torch.linalg.vector_norm(gradients, dim=-1, keepdim=True)
        clipped: Tensor = gradients * (self.plan.clip_norm / (norms + CLIPPING_EPSILON)).clamp(max=1.0)
        return clipped

    def _note(self, evaluations: Tensor | int, losses: Tensor) -> None:
        if self.rows is None:
            self.ledger.evaluations += evaluations
            self.ledger.loss_sums += losses.double()
            self.ledger.losses += 1
            return
        self.ledger.evaluations[self.rows] += evaluations
        self.ledger.loss_sums[self.rows] += losses.double()
        self.ledger.losses[self.rows] += 1
