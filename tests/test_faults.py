"""Every fault does what it says, to a run under ddp and to each kind of message."""

import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

from disttrain.compression.reduce import Dense
from disttrain.strategies import DDP, Strategy
from disttrain.strategies.attach import StrategyOptimizer, attach
from tests.faults import Corrupt, Delay, Freeze, Kill, inject
from tests.kit import WorkerFailed
from tests.test_kit import failure, nothing_left

__all__ = ["nothing_left"]  # a fixture, at work in this file too
STEPS = 5


def trained(world, *faults):
    """This worker's parameters after five steps under ddp, and the longest of its steps in seconds."""
    torch.manual_seed(0)
    module, strategy = nn.Sequential(nn.Linear(6, 33), nn.Tanh(), nn.Linear(33, 3)), DDP(Dense())
    model = attach(module, strategy, world)
    optimizer = StrategyOptimizer(torch.optim.SGD(module.parameters(), 0.1), strategy)
    inject(strategy, world, faults)
    torch.manual_seed(world.rank)
    seconds = []
    for _ in range(STEPS):
        start = time.monotonic()
        model(torch.randn(5, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - start)
    return strategy.x.clone(), max(seconds)


@pytest.mark.parametrize("fault", [Delay(rank=1, step=3, seconds=1.0), Freeze(rank=1, step=3, seconds=1.0)])
def test_a_late_worker_changes_the_time_and_not_the_result(workers, fault):
    undisturbed, disturbed = workers(2, trained), workers(2, trained, fault)
    for (expected, _), (x, seconds) in zip(undisturbed, disturbed, strict=True):
        assert torch.equal(x, expected)
        assert seconds >= 0.9  # its peer waited, too


def test_a_killed_workers_peers_fail_within_seconds_and_it_is_named(workers):
    message, seconds = failure(workers, 3, trained, Kill(rank=1, step=3))
    assert seconds < 10
    assert "--- worker 1 was killed by SIGKILL" in message
    for peer in (0, 2):
        words = message.split(f"--- worker {peer} ")[1].split("--- worker")[0]
        assert words.startswith("raised"), words
        assert "peer" in words, words


def test_a_frozen_worker_that_never_thaws_is_killed_with_its_peers(workers):
    message, seconds = failure(workers, 2, trained, Freeze(rank=1, step=3), timeout=4)
    assert 4 <= seconds < 6, message
    assert "in backward" in message.split("--- worker 1 hung")[0]
    assert "in strike" in message.split("--- worker 1 hung")[1]


def test_a_corrupted_message_changes_the_result_alike_on_all(workers):
    (expected, _), _ = workers(2, trained)
    (x, _), (other, _) = workers(2, trained, Corrupt(rank=1, step=3))
    assert torch.equal(x, other)
    assert x.isfinite().all()
    assert not torch.equal(x, expected)


def gather(world, x):
    return world.gather(x)


def broadcast(world, x):
    return world.broadcast(x)


def all_gather_of_a_list(world, x):
    parts = [torch.empty_like(x) for _ in range(world.size)]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def all_to_all(world, x):
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x)
    return received


def send_to_the_next(world, x):
    received = torch.empty_like(x)
    sending = dist.isend(x, (world.rank + 1) % world.size)
    dist.recv(received, (world.rank - 1) % world.size)
    sending.wait()
    return received


def sent_twice(world, primitive, rank):
    strategy = Strategy()
    inject(strategy, world, [Corrupt(rank=rank, step=1)])
    strategy.before_step()
    x = torch.zeros(1, 8)
    return primitive(world, x.clone()), primitive(world, x)


def wrong_bytes(x):
    return int((x.contiguous().flatten().view(torch.uint8) != 0).sum())


@pytest.mark.parametrize("primitive", [gather, broadcast, all_gather_of_a_list, all_to_all, send_to_the_next])
def test_exactly_one_byte_of_exactly_one_message_is_wrong(workers, primitive):
    results = workers(2, sent_twice, primitive, 0)
    wrong = [wrong_bytes(corrupted) for corrupted, _ in results]
    assert max(wrong) == 1, wrong
    assert not any(wrong_bytes(clean) for _, clean in results)


def lends(world):
    strategy = Strategy()
    inject(strategy, world, [Corrupt(rank=0, step=1)])
    strategy.before_step()
    x = torch.zeros(1, 8)
    everybody = world.gather(x)
    return wrong_bytes(x), wrong_bytes(everybody)


def test_a_lent_tensor_stays_whole_when_its_message_does_not(workers):
    assert workers(2, lends) == [(0, 1)] * 2


def test_a_broadcast_received_is_no_message_sent(workers):
    message, _ = failure(workers, 2, sent_twice, broadcast, 1)
    assert "--- worker 1 raised" in message
    assert "before these faults struck: [Corrupt(rank=1, step=1, byte=2)]" in message


def test_a_fault_that_never_strikes_fails_its_worker(workers):
    with pytest.raises(WorkerFailed, match=r"before these faults struck: \[Delay\(rank=1, step=6, seconds=0\)\]"):
        workers(2, trained, Delay(rank=1, step=STEPS + 1, seconds=0))


@pytest.mark.parametrize("fault", [Kill(rank=2, step=1), Kill(rank=-1, step=1), Kill(rank=0, step=0)])
def test_a_fault_at_no_ones_rank_or_step_is_refused(workers, fault):
    with pytest.raises(WorkerFailed, match=r"ValueError: Kill\(.*\): need 0 <= rank < 2 and step >= 1"):
        workers(2, trained, fault)
