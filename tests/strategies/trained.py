"""Workers that train a small model under a strategy, without a loop around them, and whether resuming is bitwise."""

import copy

import torch

from disttrain.strategies.attach import StrategyOptimizer, attach
from disttrain.training.state import TrainingState
from tests.parity import build_model, loss


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
        """Live parameters, and the result."""
        return self.strategy.x.clone(), self.strategy.finish().clone()


def not_resumed_alike(world, configs, steps, stops):
    """Which of some strategies, by name, do not end bit by bit as an uninterrupted run: the saved worker or the resumed one."""
    unequal = []
    for name, config in configs.items():
        expected = Trained(world, config).train(0, steps).everything()
        for stop in stops:
            before = Trained(world, config).train(0, stop)
            after = Trained(world, config)
            after.state.restore(copy.deepcopy(before.state.capture({}, {})))
            for each in (before, after):  # the one that was saved goes on undisturbed, too
                if not all(map(torch.equal, each.train(stop, steps).everything(), expected)):
                    unequal.append((name, stop, "saved" if each is before else "resumed"))
    return unequal
