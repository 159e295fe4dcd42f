"""Ordered learning: local steps draw from a client's easiest samples first, or its hardest, and later from all.

"When Do Curricula Work in Federated Learning?" (arXiv 2212.12712). It goes around any algorithm whose clients take local steps::

    score    every sample of a client that is asked: its loss under a model
    order    by score: easy ones first (curriculum), hard ones first (anti-curriculum); or by chance, with the same pacing
    draw     samples of local steps from the first ⌈share(t) · n_i⌉ of these, a batch at least (`pacing.py`)

The model that scores is the *global* one that the client was just sent; or an *expert*, given beforehand; or the client's own,
which is *local*: the point of its last local step when it was last asked, and the global one when it never was. Scores by an
expert are computed when a client is first asked, and kept. That takes a forward pass over all the client has, which is counted.

The samples that can be drawn are a set: a client of which it has all does what it would do without, to the bit, and is not
scored. Where clients are chosen by loss, too (`participation.py`), each sends its mean loss under the global model along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from disttrain import random
from disttrain.federated.algorithm import Algorithm, Replies, Reply, Vectors
from disttrain.federated.pacing import PacingConfig
from disttrain.federated.work import Part, Plan, Problem, Work

First: TypeAlias = Literal["easy", "hard", "random"]
Score: TypeAlias = Literal["global", "local", "expert"]
SCORES, LOSS = "scores", "loss"
"""What is kept for each client: scores of its samples, as known to it, and its mean loss, as known to the server."""
UNKNOWN = float("inf")


@dataclass(frozen=True)
class Order:
    """In which order a client's samples come in.

    Args:
        first: which of them.
        pacing: how soon the others.
        score: by what they are told apart; of no meaning where ``first`` is random.
        expert: ``[d]``, the model that scores them, where that is an expert.

    Raises:
        ValueError: if there is an expert and nothing to do for it, or the other way round.
    """

    first: First = "easy"
    pacing: PacingConfig = field(default_factory=PacingConfig)
    score: Score = "global"
    expert: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.score == "expert") != (self.expert is not None):
            raise ValueError(f"an expert's parameters are for score=expert, and score={self.score}")

    @property
    def asks_the_model(self) -> bool:
        """Whether samples are scored by what clients are sent."""
        return self.first != "random" and self.score != "expert"

    @property
    def remembers(self) -> bool:
        """Whether clients keep their samples' scores."""
        return self.first != "random" and self.score != "global"


class Ordered(Algorithm):
    """An algorithm whose clients' samples come in an order, or whose clients report their losses, or both.

    Args:
        inner: the algorithm.
        order: of samples; None: all can be drawn at any time.
        reports: while the share that it gives is below 1, clients send their mean loss along; None: never.
    """

    def __init__(self, inner: Algorithm, order: Order | None = None, reports: PacingConfig | None = None) -> None:
        self.inner, self.order, self.reports = inner, order, reports
        for name in ("client_vectors", "plain_steps", "clips", "adds_up", "large_batches", "meets_everybody"):
            setattr(self, name, getattr(inner, name))

    # --- what is added -----------------------------------------------------------------------------------------------

    def check(self, plan: Plan, name: str | None = None) -> None:
        """Whether there is anything to order, and to be paced by."""
        name = type(self.inner).__name__ if name is None else name
        self.inner.check(plan, name)
        if plan.rounds is None:
            raise ValueError("ordered learning is paced by the number of rounds: give it as Plan(rounds=...)")
        if self.order is not None and self.large_batches:
            raise ValueError(f"{name} has gradients computed on large batches, which have no order: set ordering.name=none")
        asks_the_model = self.reports is not None or (self.order is not None and self.order.asks_the_model)
        if asks_the_model and "x" not in self.inner.broadcast(self.inner.init(torch.zeros(1))):
            raise ValueError(f"{name} does not send clients the model, by whose loss samples or clients are to be ordered")

    def client_numbers(self, sizes: Tensor) -> Vectors:
        """What the algorithm keeps, and what is known of losses: nothing as yet."""
        numbers = dict(self.inner.client_numbers(sizes))
        if self.order is not None and self.order.remembers:
            numbers[SCORES] = torch.full((len(sizes), int(sizes.max())), UNKNOWN)
        if self.reports is not None:
            numbers[LOSS] = torch.full((len(sizes), 1), UNKNOWN)
        return numbers

    def client(self, message: Vectors, state: Vectors, work: Work) -> tuple[Reply, Vectors]:
        """The algorithm's own round, on samples that can be drawn."""
        plan, own = work.plan, dict(state)
        kept = {name: own.pop(name) for name in (SCORES, LOSS) if name in own}
        now = work.losses(message["x"]) if self.reports is not None and goes_on(self.reports, plan) else None
        if self.order is not None and goes_on(self.order.pacing, plan):
            reply, new, kept = self._in_order(self.order, message, own, kept, work, now)
        else:
            reply, new = self.inner.client(message, own, work)
        if now is not None:
            kept[LOSS] = torch.stack([each.mean() for each in now])[:, None].to(kept[LOSS].dtype)
            reply = {**reply, LOSS: a_number(kept[LOSS])}
        return reply, {**new, **kept}

    def _in_order(
        self,
        order: Order,
        message: Vectors,
        state: Vectors,
        kept: dict[str, Tensor],
        work: Work,
        now: list[Tensor] | None,
    ) -> tuple[Reply, Vectors, dict[str, Tensor]]:
        """The algorithm's round, of clients that draw but a part of their samples on these, and what is known of them then."""
        counts = [order.pacing.count(int(n), work.plan.round, work.plan.rounds or 1, work.plan.batch_size) for n in work.sizes]
        partly = torch.tensor(counts) < work.sizes
        if not partly.any():
            return *self.inner.client(message, state, work), kept
        some, known = work.among(partly), kept[SCORES][partly] if SCORES in kept else None
        scores = self._scores(order, known, some, message, partly, now)
        turns = zip(scores, torch.tensor(counts)[partly].tolist(), strict=True)
        problem = Eligible(work.problem, some.clients, [eligible(order.first, each, count) for each, count in turns])
        reply, new = self.inner.client(message, state, replace(work, problem=problem))
        if known is not None:
            scores = some.losses(problem.last[partly]) if order.score == "local" else scores
            kept = kept | {SCORES: kept[SCORES].clone()}
            kept[SCORES][partly] = padded(scores, known)
        return reply, new, kept

    def _scores(
        self, order: Order, known: Tensor | None, work: Work, message: Vectors, which: Tensor, now: list[Tensor] | None
    ) -> list[Tensor]:
        """Of the samples, ``[n_i]`` each, of those of a block's clients that draw a part of them."""
        if order.first == "random":
            keys = random.key(work.plan.seed, random.Stream.CURRICULUM, 0, work.clients)
            return [random.bits(own, int(n)) for own, n in zip(keys, work.sizes, strict=True)]
        if known is None:
            return at(now, which) if now is not None else work.losses(message["x"][which])
        scores = [row[: int(n)] for row, n in zip(known, work.sizes, strict=True)]
        if (new := torch.tensor([not bool(each.isfinite().all()) for each in scores])).any():
            judge = message["x"][which][new] if order.expert is None else order.expert.expand(int(new.sum()), -1)
            fresh = iter(work.among(new).losses(judge))
            scores = [next(fresh) if is_new else each for is_new, each in zip(new, scores, strict=True)]
        return scores

    # --- what is not changed -----------------------------------------------------------------------------------------

    def init(self, x: Tensor) -> Vectors:
        """The algorithm's."""
        return self.inner.init(x)

    def broadcast(self, server: Vectors) -> Vectors:
        """The algorithm's."""
        return self.inner.broadcast(server)

    def aggregate(self, server: Vectors, replies: Replies, plan: Plan) -> Vectors:
        """The algorithm's."""
        return self.inner.aggregate(server, replies, plan)

    def with_everybody(self, plan: Plan) -> bool:
        """As the algorithm has it."""
        return self.inner.with_everybody(plan)

    def warning(self, plan: Plan) -> str:
        """The algorithm's."""
        return self.inner.warning(plan)

    def bytes_down(self, message: Vectors, plan: Plan, clients: Tensor) -> Tensor:
        """As the algorithm has it."""
        return self.inner.bytes_down(message, plan, clients)


class Eligible:
    """A problem of which some clients draw a part of their samples; see :class:`~disttrain.federated.work.Problem`.

    Args:
        problem: the whole.
        clients: int64 ``[L]``, those that do; others draw as ever.
        positions: int64 ``[m_i]`` for each of them, which of its samples it draws.

    Attributes:
        last: ``[L', d]``, where gradients were last computed.
    """

    last: Tensor

    def __init__(self, problem: Problem, clients: Tensor, positions: Sequence[Tensor]) -> None:
        self.problem, self.clients, self.sizes = problem, clients, problem.sizes
        self._counts = torch.tensor([len(each) for each in positions])
        self._table = torch.nn.utils.rnn.pad_sequence(list(positions), batch_first=True)

    def gradients(self, y: Tensor, clients: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """The problem's, where a draw means one of the client's positions, and stays as random as it was."""
        assert draws is not None, "checked: no large batches"
        same = clients[:, None] == self.clients
        partly, rows = same.any(-1, keepdim=True), same.int().argmax(-1)
        half, n = draws >> 1, self.sizes[clients, None]  # halved, so that the sum below cannot overflow
        positions = self._table[rows].gather(1, half % self._counts[rows, None])
        self.last = y
        return self.problem.gradients(y, clients, torch.where(partly, half - half % n + positions, draws))


def eligible(first: First, scores: Tensor, count: int) -> Tensor:
    """Which samples can be drawn: the positions of ``count`` of them by their scores ``[n]``, int64 ``[count]``, ascending."""
    ranked = scores.argsort(stable=True)
    return (ranked.flip(0) if first == "hard" else ranked)[:count].sort().values


def goes_on(pacing: PacingConfig, plan: Plan) -> bool:
    """Whether not all can be drawn yet."""
    assert plan.rounds is not None, "checked"
    return pacing.share(plan.round, plan.rounds) < 1


def padded(scores: Sequence[Tensor], like: Tensor) -> Tensor:
    """``[n_i]`` each as rows of the shape and type of others ``[L, w]``."""
    rows = torch.full_like(like, UNKNOWN)
    for row, each in zip(rows, scores, strict=True):
        row[: len(each)] = each
    return rows


def at(scores: Sequence[Tensor], which: Tensor) -> list[Tensor]:
    """Those of some clients."""
    return [each for each, wanted in zip(scores, which, strict=True) if wanted]


def a_number(values: Tensor) -> Part:
    """One number of each client's reply, ``[L, 1]``: not part of the model, and sent without a link's noise."""
    count = len(values)
    return Part(values, torch.ones(count, dtype=torch.float64), torch.full((count,), values.element_size()))
