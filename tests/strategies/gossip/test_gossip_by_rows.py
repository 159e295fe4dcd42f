"""Mixing is the same bits however few rows are mixed at a time; one at a time is what a process does."""

import pytest
import torch

from disttrain.parameters import Layout, Unit
from disttrain.strategies.gossip import DPSGDConfig
from disttrain.topology import CompleteConfig, OnePeerExponentialConfig, RandomMatchingConfig, RingConfig
from disttrain.worlds import StackedWorld, stacked_world

N, D = 12, 4810


@pytest.mark.parametrize(
    "topology", [RingConfig(), CompleteConfig(), OnePeerExponentialConfig(), RandomMatchingConfig()], ids=lambda each: each.name
)
def test_rows_do_not_depend_on_which_are_mixed_together(monkeypatch, topology):
    found = []
    for heard_bytes in (1, 100_000, 1 << 30):
        monkeypatch.setattr(stacked_world, "HEARD_BYTES", heard_bytes)
        x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
        strategy = DPSGDConfig(topology=topology, order="adapt_then_combine").build()
        strategy.begin(x, Layout((Unit("x", (D,), 0),), D), StackedWorld(N, debug=True))
        for _ in range(3):
            assert strategy.before_step()
            strategy.after_step()
        found.append((x, strategy.local["peer_distance"]))
    for x, distance in found[1:]:
        assert torch.equal(x, found[0][0])
        assert torch.equal(distance, found[0][1])
