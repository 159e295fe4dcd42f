"""The round loop, which stands here once: ask, compute, decide, aggregate, commit.

::

    cohort    whom the server asks, by (seed, round)
    arrivals  who answers in time, in virtual time; the others are as if they had not been asked, but for what they were sent
    blocks    those that answer, in the cohort's order; any engine computes them
    server    takes the sums, if enough have answered, and only then clients' new states are committed

A round in which too few answer is void: nothing moves, nothing is committed, but the round counts, and so does what was sent.
Rounds depend on their number and the state alone, so going on from a checkpoint needs no generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from disttrain.federated.algorithm import Algorithm, Vectors
from disttrain.federated.arrivals import Arrivals, LatencyConfig, WaitForAllConfig, WaitingConfig, answering
from disttrain.federated.blocks import Block, BlockResult, blocks_of, total_of
from disttrain.federated.engines import Engine
from disttrain.federated.ordered import LOSS
from disttrain.federated.participation import CurriculumConfig, ParticipationConfig, UniformConfig
from disttrain.federated.store import ClientStore
from disttrain.federated.work import Plan

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Availability:
    """Whom the server asks, and who answers.

    Args:
        cohort: S, how many replies are wanted.
        participation: who is asked.
        waiting: for whom the server waits.
        dropout: with which probability a client that is asked does not answer.
        latency: how long the others take.
        min_completion: the share of the cohort that must answer, or the round is void.
    """

    cohort: int
    participation: ParticipationConfig = field(default_factory=UniformConfig)
    waiting: WaitingConfig = field(default_factory=WaitForAllConfig)
    dropout: float = 0.0
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    min_completion: float = 0.0


@dataclass(frozen=True)
class RoundReport:
    """What a round has cost, and shown.

    Args:
        loss: mean over the clients used of their batches' losses, before each local step; NaN where there are none.
        asked: clients.
        used: clients whose replies the server took.
        bytes_up: of the replies that were taken.
        bytes_down: to all that were asked.
        evaluations: gradients of single samples, by the clients used.
        scored: samples whose loss was computed to order samples or clients, the same.
        refused: clients that answered in time with numbers that are not finite.
        dropped: clients that would have answered in time, but for the engine, which has lost their block.
        virtual_seconds: that the round took.
        void: whether too few have answered, so that nothing moved.
    """

    loss: float
    asked: int
    used: int
    bytes_up: int
    bytes_down: int
    evaluations: int
    scored: int
    refused: int
    dropped: int
    virtual_seconds: float
    void: bool

    @property
    def lost(self) -> int:
        """Clients that were asked, and not used."""
        return self.asked - self.used


@dataclass
class Totals:
    """Sums over all rounds so far."""

    bytes_up: int = 0
    bytes_down: int = 0
    evaluations: int = 0
    scored: int = 0
    clients_used: int = 0
    clients_lost: int = 0
    clients_refused: int = 0
    clients_dropped: int = 0
    void_rounds: int = 0
    virtual_seconds: float = 0.0

    def add(self, report: RoundReport) -> None:
        """One more round."""
        self.bytes_up += report.bytes_up
        self.bytes_down += report.bytes_down
        self.evaluations += report.evaluations
        self.scored += report.scored
        self.clients_used += report.used
        self.clients_lost += report.lost
        self.clients_refused += report.refused
        self.clients_dropped += report.dropped
        self.void_rounds += report.void
        self.virtual_seconds += report.virtual_seconds


class Federation:
    """A server, its clients' states, and the rounds between them.

    Args:
        algorithm: what they do.
        x: ``[d]``, the initial model.
        engine: computes blocks of the same algorithm.
        plan: of every round, but for its number, learning rate and number of clients.
        availability: who takes part.
        sizes: int64 ``[N]``, each client's samples; a client without any is never asked.
        block_size: clients of a block; another one adds up in another order, which shows in the last bits.
        lr: the local learning rate of a round; None: the plan's.
        folder: for large client states; see :class:`~disttrain.federated.store.ClientStore`.

    Attributes:
        server: the server's vectors.
        store: the clients'.
        round: how many have been made.
        totals: what they have cost.

    Raises:
        ValueError: if there are not that many clients with samples, or the algorithm is not for such rounds.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        x: Tensor,
        engine: Engine,
        plan: Plan,
        availability: Availability,
        sizes: Tensor,
        block_size: int = BLOCK_SIZE,
        lr: Callable[[int], float] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.algorithm, self.engine, self.availability, self.sizes = algorithm, engine, availability, sizes
        self.clients = sizes.nonzero()[:, 0]
        self.plan = replace(plan, num_clients=len(self.clients))  # means over all clients are over those that can have a say
        if not 1 <= availability.cohort <= len(self.clients):
            raise ValueError(f"cohort={availability.cohort} must be from 1 to {len(self.clients)}, the clients with samples")
        algorithm.check(plan)
        self.block_size, self._lr = block_size, lr
        self.server: Vectors = algorithm.init(x)
        names, numbers = algorithm.client_vectors, algorithm.client_numbers(sizes)
        self.store = ClientStore(names, len(sizes), len(x), x.dtype, folder, numbers)
        if isinstance(availability.participation, CurriculumConfig) and LOSS not in self.store.vectors:
            raise ValueError(
                f"participation {availability.participation.name} goes by clients' losses, which {type(algorithm).__name__} "
                "does not report: put Ordered(algorithm, reports=participation.pacing) around it"
            )
        self.round, self.totals = 0, Totals()

    @property
    def x(self) -> Tensor:
        """The server's model, ``[d]``."""
        return self.server["x"]

    def step(self) -> RoundReport:
        """One round."""
        lr = self.plan.lr if self._lr is None else self._lr(self.round)
        plan = replace(self.plan, round=self.round, lr=lr)
        cohort, arrivals = self._ask(plan)
        message = self.algorithm.broadcast(self.server)
        bytes_down = int(self.algorithm.bytes_down(message, plan, cohort).sum())
        needed = max(1, math.ceil(round(self.availability.min_completion * self.availability.cohort, 9)))
        void, results, dropped = int(arrivals.used.sum()) < needed, [], 0
        if not void:
            results = self._compute(message, plan, cohort[arrivals.used])
            dropped = int(arrivals.used.sum()) - sum(len(result.clients) for result in results)
            void = sum(int(result.accepted.sum()) for result in results) < needed
        if void:
            self.store.discard()
        else:
            self.server = self.algorithm.aggregate(self.server, total_of(results), plan)
            self.store.commit()
        report = _report(results, len(cohort), dropped, bytes_down, arrivals.seconds, void)
        self.round += 1
        self.totals.add(report)
        return report

    def _ask(self, plan: Plan) -> tuple[Tensor, Arrivals]:
        """Who is asked, int64 ``[S]``, and what becomes of them."""
        who, seed, number = self.availability, plan.seed, plan.round
        if self.algorithm.meets_everybody and number == 0:  # an introduction: the server waits for all
            seconds = who.latency.draw(self.clients, plan.steps, seed, number)
            return self.clients, Arrivals(torch.ones(len(self.clients), dtype=torch.bool), float(seconds.max()))
        wanted = len(self.clients) if self.algorithm.with_everybody(plan) else who.cohort
        count = min(who.waiting.invited(wanted), len(self.clients))
        clients = self._candidates(count, plan)
        cohort = who.participation.cohort(clients, self.sizes[clients], count, seed, number)
        seconds = who.latency.draw(cohort, plan.steps, seed, number)
        return cohort, who.waiting.decide(answering(cohort, who.dropout, seed, number), seconds, wanted)

    def _candidates(self, count: int, plan: Plan) -> Tensor:
        """Whom the server can ask: all clients, unless their losses decide."""
        if not isinstance(participation := self.availability.participation, CurriculumConfig):
            return self.clients
        assert plan.rounds is not None, "checked"
        losses = self.store.vectors[LOSS][self.clients, 0]
        return self.clients[participation.among(losses, count, plan.round, plan.rounds)]

    def _compute(self, message: Vectors, plan: Plan, clients: Tensor) -> list[BlockResult]:
        """The results of the blocks that came back; what is accepted is staged."""
        blocks = [Block(part, message, self.store.read(part), plan) for part in blocks_of(clients, self.block_size)]
        results = [result for result in self.engine.run(blocks) if result is not None]
        for result in results:
            self.store.stage(
                result.clients[result.accepted], {name: rows[result.accepted] for name, rows in result.state.items()}
            )
        return results

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
        """For a checkpoint: the server's vectors, the clients', and plain facts."""
        return dict(self.server), dict(self.store.vectors), asdict(self.totals) | {"round": self.round}

    def restore(self, server: Vectors, clients: Vectors, facts: Mapping[str, float]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: if it is of another algorithm, model or number of clients.
        """
        for who, live, saved in (("the server keeps", self.server, server), ("clients keep", self.store.vectors, clients)):
            if live.keys() != saved.keys():
                raise ValueError(f"what {who} is {sorted(live)} here, and {sorted(saved)} there")
            for name in live:
                if live[name].shape != saved[name].shape:
                    raise ValueError(
                        f"{name}, which {who}, is {list(live[name].shape)} here, and {list(saved[name].shape)} there"
                    )
        self.server = {name: each.clone() for name, each in server.items()}
        for name, rows in clients.items():
            self.store.vectors[name].copy_(rows)
        totals = dict(facts)
        self.round = int(totals.pop("round"))
        self.totals = Totals(**totals)  # type: ignore[arg-type]


def _report(results: list[BlockResult], asked: int, dropped: int, bytes_down: int, seconds: float, void: bool) -> RoundReport:
    used = [] if void else [(result, result.accepted) for result in results]
    losses = sum(float(result.ledger.loss_sums[accepted].sum()) for result, accepted in used)
    count = sum(int(result.ledger.losses[accepted].sum()) for result, accepted in used)
    return RoundReport(
        loss=losses / count if count else math.nan,
        asked=asked,
        used=sum(int(accepted.sum()) for _, accepted in used),
        bytes_up=sum(int(result.bytes_up[accepted].sum()) for result, accepted in used),
        bytes_down=bytes_down,
        evaluations=sum(int(result.ledger.evaluations[accepted].sum()) for result, accepted in used),
        scored=sum(int(result.ledger.scored[accepted].sum()) for result, accepted in used),
        refused=sum(int((~result.accepted).sum()) for result in results),
        dropped=dropped,
        virtual_seconds=seconds,
        void=void,
    )
