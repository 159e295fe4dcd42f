"""Gossip over rows and over processes is the same bits, and goes on after an interruption as if there had been none."""

import copy

import torch

from disttrain.strategies.attach import StrategyOptimizer, attach
from disttrain.strategies.gossip import (
    DPSGDConfig,
    GradientTrackingConfig,
    NoLoCoConfig,
    QuasiGlobalMomentumConfig,
    SometimesConfig,
)
from disttrain.topology import (
    BaseGraphConfig,
    CompleteConfig,
    ExponentialConfig,
    OnePeerExponentialConfig,
    RandomMatchingConfig,
    RingConfig,
)
from disttrain.training.state import TrainingState
from tests.parity import build_model, loss

STRATEGIES = {
    "ring": DPSGDConfig(topology=RingConfig(), merge=False),
    "ring, waited for": DPSGDConfig(topology=RingConfig(), order="adapt_then_combine", merge=False),
    "exponential": DPSGDConfig(topology=ExponentialConfig(), merge=False),
    "one peer, one way": DPSGDConfig(topology=OnePeerExponentialConfig(), merge=False),
    "base graph": DPSGDConfig(topology=BaseGraphConfig(k=1), period=2, merge=False),
    "quasi-global momentum": QuasiGlobalMomentumConfig(period=2, merge=False),
    "noloco": NoLoCoConfig(period=3, merge=False),
    "gradient tracking": GradientTrackingConfig(topology=RingConfig(), merge=False),
    "complete": DPSGDConfig(topology=CompleteConfig(), merge=False),
    "matchings, now and then": DPSGDConfig(
        topology=RandomMatchingConfig(), communication=SometimesConfig(probability=0.5), period=3, merge=False
    ),
}
STEPS = 12


def test_every_topology(parity):
    parity(*(config.build for config in STRATEGIES.values()), sizes=(2, 4, 5, 8))


def test_the_merge(parity):
    parity(DPSGDConfig(topology=RingConfig()).build, sizes=(2, 4), tolerance=1e-7)


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
        return self

    def everything(self):
        return torch.cat([self.strategy.x.clone(), self.strategy.finish()])


def resumed_alike(world):
    unequal = []
    for name, config in STRATEGIES.items():
        expected = Trained(world, config).train(0, STEPS).everything()
        for stop in (5, 6):
            before, after = Trained(world, config).train(0, stop), Trained(world, config)
            after.state.restore(copy.deepcopy(before.state.capture({}, {})))
            for each in (before, after):
                if not torch.equal(each.train(stop, STEPS).everything(), expected):
                    unequal.append((name, stop, "saved" if each is before else "resumed"))
    return unequal


def test_resuming_is_bitwise(workers):
    assert workers(4, resumed_alike) == [[]] * 4
