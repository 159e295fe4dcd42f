"""A world of gloo processes: its primitives, and the bytes that it says they cost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.worlds import MixingRound
from disttrain.worlds.traffic import Traffic, broadcast_wire_bytes
from tests.sockets import bytes_sent


def primitives(world):
    x = torch.arange(6.0)[None] + 10 * world.rank
    kept = x.clone()
    return {
        "mean": world.mean(x), "gather": world.gather(x), "broadcast": world.broadcast(x), "untouched": torch.equal(x, kept),
        "flat": world.gather(torch.full((1, 3), world.rank, dtype=torch.uint8)),
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 5])
def test_primitives(workers, size):
    for result in workers(size, primitives):
        rows = torch.arange(6.0) + 10 * torch.arange(size)[:, None]
        assert torch.equal(result["gather"], rows[None])
        assert torch.equal(result["broadcast"], rows[:1])
        assert torch.allclose(result["mean"], rows.mean(0, keepdim=True))
        assert result["mean"].shape == (1, 6)
        assert result["untouched"]
        assert result["flat"].flatten().tolist() == [rank for rank in range(size) for _ in range(3)]


def call(world, primitive, numel):
    x = torch.ones(1, numel)
    if primitive == "transpose":
        return world.transpose(x.view(1, world.size, -1))
    if primitive == "exchange":
        return world.exchange(x, one_way_ring(world.size))
    return getattr(world, primitive)(x)


def one_way_ring(size):
    return MixingRound(torch.arange(size)[:, None].roll(1, 0))


def sent(world, primitive, numel):
    call(world, primitive, 84)  # connections are made
    world.gather(torch.zeros(1, 1))
    before, counted = bytes_sent(), world.traffic.wire_bytes
    for _ in range(8):
        call(world, primitive, numel)
    counted = world.traffic.wire_bytes - counted
    world.gather(torch.zeros(1, 1))  # all have sent everything
    measured = bytes_sent() - before
    world.gather(torch.zeros(1, 1))  # a worker that ended would take its peers' connections along
    return measured, counted


@pytest.mark.parametrize("primitive", ["mean", "gather", "transpose", "exchange", "broadcast"])
@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_wire_bytes_are_what_each_worker_sent(workers, primitive, size):
    for measured, counted in workers(size, sent, primitive, 252_000):
        assert counted == pytest.approx(measured, rel=0.03, abs=20_000)  # a leaf of the broadcast sends next to nothing


@given(st.integers(1, 300), st.integers(0, 10**6))
def test_a_broadcast_reaches_every_other_worker_once(size, payload):
    assert sum(broadcast_wire_bytes(payload, rank, size) for rank in range(size)) == payload * (size - 1)


def test_restored_totals_go_on():
    traffic = Traffic()
    traffic.add(100, 150)
    later = Traffic()
    later.add(1, 2)
    later.restore(traffic.state())
    assert (later.payload_bytes, later.wire_bytes, later.collectives) == (101, 152, 2)
