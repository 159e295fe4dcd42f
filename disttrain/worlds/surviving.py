"""What a lane can do beyond the contract in `world.py` where workers may be lost, late or frozen while the others train on.

There an exchange may have no answer in time. It is then *outstanding*, and its answer lands in a later round: both ends of a pair
add opposite amounts, computed from the two snapshots of one step, whenever each of them comes to it. So the sum over all workers
is kept, however late an answer is. If a worker is lost with an exchange half done, one end has added its amount and the other
never will: the sum is off by at most w ‖x_i − x_j‖ for each such exchange, which ``lost_exchanges`` counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from disttrain.worlds.world import Lane, MixingRound


@dataclass(frozen=True, eq=False)
class Answer:
    """One exchange that has landed, of each of some workers that live here.

    Attributes:
        theirs: ``[r, b]``: what the peer sent; whoever takes the answer may overwrite it.
        own: ``[r, b]``: what the peer was sent.
        weights: ``[r, 1]``: what both give to the difference; 0 where nothing has landed.
        rows: the workers' rows.
    """

    theirs: Tensor
    own: Tensor
    weights: Tensor
    rows: slice = field(default_factory=lambda: slice(None))


class SurvivesPeers:
    """A lane whose workers may be lost."""

    lost_exchanges = 0
    """Exchanges of this worker that may have been half done when a peer was lost; at most one for each."""

    def living(self, step: int) -> Tensor:
        """Who takes part after local step ``step``: bool ``[size]``, the same on all workers that have heard of it by then."""
        raise NotImplementedError(f"{type(self).__name__} must define living()")

    def answers(self, x: Tensor, round: MixingRound, weights: Tensor, step: int) -> list[Answer]:
        """Exchange ``x [L, b]`` as of ``step``; what has landed within the deadline, of this and of earlier exchanges.

        ``weights [L, k]`` are what the workers here give to each of their k peers.
        """
        raise NotImplementedError(f"{type(self).__name__} must define answers()")

    def settle(self, x: Tensor) -> list[Answer]:
        """At the end, the outstanding answers that both ends will add to ``x [L, b]``; called once, by all the living."""
        raise NotImplementedError(f"{type(self).__name__} must define settle()")

    def latest_mean(self, values: Tensor) -> Tensor:
        """The mean ``[1, k]`` of what the living have last said here, ``values [L, k]`` included; waits for nobody."""
        raise NotImplementedError(f"{type(self).__name__} must define latest_mean()")


def answers(lane: Lane, x: Tensor, round: MixingRound, weights: Tensor, step: int) -> Iterable[Answer]:
    """Exchange ``x [L, b]`` over any lane; where nobody can be lost, all peers have answered."""
    if isinstance(lane, SurvivesPeers):
        return lane.answers(x, round, weights, step)
    by_rows = lane.exchange_by_rows(x, round)
    return (answer for rows, heard in by_rows for answer in answers_of(x, heard, weights, rows))


def answers_of(x: Tensor, heard: Tensor, weights: Tensor, rows: slice = slice(None)) -> Iterator[Answer]:
    """What some rows of ``x [L, b]`` have heard, ``[r, k, b]``, by the weights ``[L, k]`` of all."""
    own, given = x[rows], weights[rows].to(x)
    for place in range(heard.shape[1]):
        yield Answer(heard[:, place], own, given[:, place : place + 1], rows)
