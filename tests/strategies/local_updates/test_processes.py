"""Local updates in real processes: one anchor for all, and a resumption that no bit can tell, in the middle of a round too."""

import copy
import itertools

import torch

from disttrain.strategies.attach import StrategyOptimizer, attach
from disttrain.training.state import TrainingState
from tests.parity import build_model, loss
from tests.strategies.local_updates.test_parity import COMPRESSED, METHODS

STEPS, STOP = 14, (6, 8)  # in mid-round or in a warm-up, and where a round of 4 closes: with an exchange under way, if it may be


class Trained:
    """A worker under a strategy, with AdamW inside."""

    def __init__(self, world, config):
        self.world, self.strategy = world, config.build()
        self.module = build_model()
        self.model = attach(self.module, self.strategy, world)
        self.optimizer = StrategyOptimizer(torch.optim.AdamW(self.module.parameters(), lr=0.02), self.strategy)
        self.state = TrainingState(self.module, self.optimizer, self.strategy, world.rank)

    def train(self, first, last):
        for step in range(first, last):
            generator = torch.Generator().manual_seed(1000 * step + self.world.rank)
            loss(self.model, torch.randn(8, 16, generator=generator), torch.randn(8, 4, generator=generator)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def everything(self):
        """Live parameters, and the result."""
        return self.strategy.x.clone(), self.strategy.finish().clone()


def resumed_alike(world):
    unequal = []
    for name, config in (METHODS | COMPRESSED).items():
        straight = Trained(world, config)
        straight.train(0, STEPS)
        expected = straight.everything()
        for stop in STOP:
            before = Trained(world, config)
            before.train(0, stop)
            saved = copy.deepcopy(before.state.capture({}, {}))
            after = Trained(world, config)
            after.state.restore(saved)
            for each in (before, after):  # the one that was saved goes on undisturbed, too
                each.train(stop, STEPS)
                if not all(map(torch.equal, each.everything(), expected)):
                    unequal.append((name, stop, "saved" if each is before else "resumed"))
    return unequal


def test_resuming_is_bitwise(workers):
    assert workers(2, resumed_alike) == [[], []]


def anchors(world):
    """Of every method: whether anchors agreed after every step, and whether live parameters ever differed."""
    seen = {}
    for name, config in METHODS.items():
        trained = Trained(world, config)
        agreed, differed = True, False
        for step in range(STEPS):
            trained.train(step, step + 1)
            everybody = world.gather(torch.cat([trained.strategy.anchor, trained.strategy.x], dim=1))[0]
            anchor, live = everybody.chunk(2, dim=1)
            agreed &= bool((anchor == anchor[0]).all())
            differed |= bool((live != live[0]).any())
        seen[name] = agreed, differed
    return seen


def test_anchors_are_equal_and_live_parameters_are_not(workers):
    for seen in workers(4, anchors):
        assert seen == dict.fromkeys(METHODS, (True, True))


def collectives(world):
    """Calls of a world's primitives by CO2 with rounds of 4, in steps 0 to 3, 4 to 7 and 8 to 10."""
    trained = Trained(world, METHODS["co2"])
    seen = [world.traffic.collectives]
    for first, last in ((0, 4), (4, 8), (8, 11)):
        trained.train(first, last)
        assert trained.strategy.shared  # waits for what is in flight, which is counted when its lane comes to it
        seen.append(world.traffic.collectives)
    return [after - before for before, after in itertools.pairwise(seen)]


def test_nothing_is_exchanged_but_a_delta_a_round(workers):
    assert workers(2, collectives) == [[1, 1, 0]] * 2
