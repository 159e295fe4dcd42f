"""Gossip over rows and over processes is the same bits, and goes on after an interruption as if there had been none."""

import pytest

from disttrain.compression.quantize import IdentityConfig, Int8Config, QSGDConfig
from disttrain.compression.sparse import BlockTopKConfig, RandKConfig
from disttrain.strategies.gossip import (
    DPSGD,
    BudgetConfig,
    ChocoConfig,
    DPSGDConfig,
    GradientTrackingConfig,
    NoLoCoConfig,
    QuasiGlobalMomentumConfig,
    SometimesConfig,
    StochasticGradientPushConfig,
    TriggeredConfig,
)
from disttrain.topology import (
    BaseGraphConfig,
    CompleteConfig,
    ExponentialConfig,
    OnePeerExponentialConfig,
    RandomMatchingConfig,
    RandomPushConfig,
    RingConfig,
    StarConfig,
)
from tests.strategies.trained import not_resumed_alike


class Budgeted(DPSGDConfig):
    """As a run's config builds it."""

    def build(self) -> DPSGD:
        strategy = super().build()
        strategy.total_steps = STEPS
        return strategy


STEPS = 9
STRATEGIES = {
    "ring": DPSGDConfig(topology=RingConfig(), merge=False),
    "ring, waited for": DPSGDConfig(topology=RingConfig(), order="adapt_then_combine", merge=False),
    "exponential": DPSGDConfig(topology=ExponentialConfig(), merge=False),
    "one peer, one way": DPSGDConfig(topology=OnePeerExponentialConfig(), merge=False),
    "base graph": DPSGDConfig(topology=BaseGraphConfig(k=1), period=2, merge=False),
    "quasi-global momentum": QuasiGlobalMomentumConfig(period=2, merge=False),
    "noloco": NoLoCoConfig(period=3, merge=False),
    "gradient tracking": GradientTrackingConfig(topology=RingConfig(), merge=False),
    "a round late": DPSGDConfig(topology=RingConfig(), delay=1, mixing_rate=0.7, merge=False),
    "matchings, three rounds late": DPSGDConfig(
        topology=RandomMatchingConfig(),
        communication=SometimesConfig(probability=0.7),
        delay=3,
        mixing_rate=0.4,
        period=2,
        merge=False,
    ),
    "triggered": DPSGDConfig(topology=RingConfig(), communication=TriggeredConfig(threshold=0.05), merge=False),
    "triggered, waited for": QuasiGlobalMomentumConfig(
        topology=RandomMatchingConfig(), communication=TriggeredConfig(threshold=0.3, relative=False), period=2, merge=False
    ),
    "a late budget": Budgeted(
        topology=RingConfig(), communication=BudgetConfig(bytes=300_000, spend="late"), delay=1, mixing_rate=0.5, merge=False
    ),
    "complete": DPSGDConfig(topology=CompleteConfig(), merge=False),
    "matchings, now and then": DPSGDConfig(
        topology=RandomMatchingConfig(), communication=SometimesConfig(probability=0.5), period=3, merge=False
    ),
    "choco, int8": ChocoConfig(compressor=Int8Config(), merge=False),
    "choco, qsgd on a star": ChocoConfig(compressor=QSGDConfig(), topology=StarConfig(), period=2, merge=False),
    "choco, a tenth by chance": ChocoConfig(compressor=RandKConfig(ratio=0.1), topology=ExponentialConfig(), merge=False),
    "choco, a tenth": ChocoConfig(
        compressor=BlockTopKConfig(ratio=0.1), topology=CompleteConfig(), consensus_lr=0.2, merge=False
    ),
    "choco, everything": ChocoConfig(compressor=IdentityConfig(), merge=False),
    "push": StochasticGradientPushConfig(topology=RandomPushConfig(k=1), merge=False),
    "push, now and then": StochasticGradientPushConfig(
        topology=RandomPushConfig(k=2), communication=SometimesConfig(probability=0.5), period=2, merge=False
    ),
    "push along a ring": StochasticGradientPushConfig(topology=RingConfig(), merge=False),
}


@pytest.mark.parametrize("size", [2, 5, *(pytest.param(size, marks=pytest.mark.slow) for size in (4, 8))])
def test_every_topology(parity, size):
    parity(*(config.build for config in STRATEGIES.values()), sizes=(size,))


def test_the_merge(parity):
    parity(
        DPSGDConfig(topology=RingConfig()).build,
        StochasticGradientPushConfig(topology=RandomPushConfig(k=1)).build,
        sizes=(2, 4),
        tolerance=1e-7,
    )


SITES = {
    "sites": DPSGDConfig(topology=RingConfig(), group_size=2, period=2),
    "sites, triggered": DPSGDConfig(topology=BaseGraphConfig(k=1), group_size=2, communication=TriggeredConfig(threshold=0.05)),
    "sites, a round late": DPSGDConfig(topology=RingConfig(), group_size=2, delay=1, mixing_rate=0.7, merge=False),
}


def test_sites(parity):
    parity(*(config.build for config in SITES.values()), sizes=(4, 6), tolerance=1e-6)


TELLING = ("ring", "quasi-global momentum", "noloco", "gradient tracking", "matchings, three rounds late", "a late budget",
           "triggered, waited for", "choco, int8", "push, now and then", "sites, a round late")  # fmt: skip
"""Those that differ in what has to be saved."""


@pytest.mark.parametrize("names", [TELLING, pytest.param(tuple(STRATEGIES | SITES), marks=pytest.mark.slow)], ids=["some", "all"])
def test_resuming_is_bitwise(workers, names):
    chosen = {name: (STRATEGIES | SITES)[name] for name in names}
    assert workers(4, not_resumed_alike, chosen, STEPS, (5, 6)) == [[]] * 4
