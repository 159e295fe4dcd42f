"""What rows hear, all at once and a few rows at a time."""

import pytest
import torch

from disttrain.topology import complete, one_peer_exponential, random_matching
from disttrain.worlds import MixingRound, StackedWorld, stacked_world


@pytest.mark.parametrize("heard_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("topology", [complete(7), one_peer_exponential(7), random_matching(7)], ids=lambda each: each.name)
def test_a_few_rows_at_a_time_is_the_same_as_all_at_once(monkeypatch, topology, heard_bytes):
    monkeypatch.setattr(stacked_world, "HEARD_BYTES", heard_bytes)
    x, round = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), topology.round(1)
    whole, by_rows = StackedWorld(7), StackedWorld(7)
    parts = list(by_rows.exchange_by_rows(x, round))
    assert torch.equal(torch.cat([heard for _, heard in parts]), whole.exchange(x, round))
    assert [row for rows, _ in parts for row in range(7)[rows]] == list(range(7))
    assert by_rows.traffic == whole.traffic
    assert all(len(heard) == 1 or heard.numel() * heard.element_size() <= heard_bytes for _, heard in parts)


def test_nobody_hears_anything():
    parts = list(StackedWorld(3).exchange_by_rows(torch.zeros(3, 5), MixingRound(torch.empty(3, 0, dtype=torch.int64))))
    assert [heard.shape[1:] for _, heard in parts] == [(0, 5)] * len(parts)
    assert sum(len(heard) for _, heard in parts) == 3
