"""Workers as rows, whose exchanges land as a script says: what real ones did, by their journals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from disttrain.worlds import Answer, StackedWorld, SurvivesPeers
from disttrain.worlds.pair import END
from disttrain.worlds.stacked_world import StackedLane
from tests.worlds.mixing import Added

Script = dict[tuple[int, int], list[Added]]
"""What landed, by worker and call."""


class ScriptedWorld(StackedWorld):
    """Rows whose lanes follow a script."""

    def __init__(self, size: int, script: Script) -> None:
        super().__init__(size)
        self._script = script

    def lane(self, name: str, ranks: Sequence[int] | None = None) -> ScriptedLane:
        return ScriptedLane(self.ids, self._script)


class ScriptedLane(StackedLane, SurvivesPeers):
    """An exchange is a pair of snapshots of one step; when it lands, and whether it does, is the script's to say."""

    def __init__(self, ids: Tensor, script: Script) -> None:
        super().__init__(ids, ids, debug=False)
        self._script, self._sent = script, {}

    def living(self, step: int) -> Tensor:
        return torch.ones(self.size, dtype=torch.bool)

    def answers(self, x: Tensor, round: object, weights: Tensor, step: int) -> list[Answer]:
        self._sent[step] = x.clone()
        return self._landed(x, step)

    def settle(self, x: Tensor) -> list[Answer]:
        return self._landed(x, END)

    def _landed(self, like: Tensor, call: int) -> list[Answer]:
        rows = [self._script.get((worker, call), []) for worker in range(self.size)]
        return [self._answer(like, rows, place) for place in range(max(map(len, rows)))]

    def _answer(self, like: Tensor, rows: list[list[Added]], place: int) -> Answer:
        theirs, own, weights = torch.zeros_like(like), torch.zeros_like(like), like.new_zeros(self.size, 1)
        for worker, added in enumerate(rows):
            if place < len(added):
                step, peer = added[place].step, added[place].peer
                theirs[worker], own[worker] = self._sent[step][peer], self._sent[step][worker]
                weights[worker] = added[place].weight
        return Answer(theirs, own, weights)
