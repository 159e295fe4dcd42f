"""Local updates in real processes: one anchor for all, and a resumption that no bit can tell, in the middle of a round too."""

import itertools

import torch
from torch import nn

from disttrain.strategies import LocalSGDConfig
from disttrain.strategies.attach import StrategyOptimizer, attach
from tests.parity import loss
from tests.strategies.local_updates.test_parity import COMPRESSED, METHODS
from tests.strategies.trained import Trained, not_resumed_alike

STEPS, STOP = 14, (6, 8)  # in mid-round or in a warm-up, and where a round of 4 closes: with an exchange under way, if it may be


def test_resuming_is_bitwise(workers):
    assert workers(2, not_resumed_alike, METHODS | COMPRESSED, STEPS, STOP) == [[], []]


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


class Branches(nn.Module):
    """A parameter that only every other call uses."""

    def __init__(self):
        super().__init__()
        self.often, self.seldom, self.calls = nn.Linear(16, 4), nn.Linear(16, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.often(x) + (self.seldom(x) if self.calls % 2 else 0.0)


def branches(world):
    """The parameters after a warm-up and a round."""
    torch.manual_seed(0)
    module, strategy = Branches(), LocalSGDConfig(period=2, warmup_steps=4, find_unused_parameters=True).build()
    model = attach(module, strategy, world)
    optimizer = StrategyOptimizer(torch.optim.SGD(module.parameters(), lr=0.1), strategy)
    for step in range(6):
        generator = torch.Generator().manual_seed(1000 * step + world.rank)
        loss(model, torch.randn(8, 16, generator=generator), torch.randn(8, 4, generator=generator)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return strategy.x.clone()


def test_parameters_without_a_gradient_may_be_allowed_in_the_warm_up(workers):
    both = workers(2, branches)
    assert torch.equal(*both)
    assert both[0].isfinite().all()
