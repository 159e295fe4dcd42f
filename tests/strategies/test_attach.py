"""Attached strategies equal what users would write by hand, and nothing is exchanged that they did not ask for."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from disttrain.compression.reduce import Dense, TwoPhaseCast
from disttrain.strategies import DDP, Strategy
from disttrain.strategies.attach import StrategyOptimizer, attach, parameters_as

STEPS = 8


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 33), nn.Tanh(), nn.Linear(33, 33), nn.Tanh(), nn.Linear(33, 3))


def batch(step, rank):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(5, 6, generator=generator), torch.randn(5, 3, generator=generator)


def train(model, optimizer, rank, steps=range(STEPS), accumulate=1):
    for step in steps:
        for micro in range(accumulate - 1):
            with model.no_sync():
                inputs, targets = batch(100 * (micro + 1) + step, rank)
                (model(inputs) - targets).square().mean().backward()
        inputs, targets = batch(step, rank)
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained_by_torch(world, accumulate):
    module = small_model()
    ddp = nn.parallel.DistributedDataParallel(module)
    train(ddp, torch.optim.AdamW(module.parameters(), 1e-2), world.rank, accumulate=accumulate)
    return flat(module)


def trained_by_us(world, accumulate, strategy=None):
    module = small_model()
    strategy = strategy or DDP(Dense())
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    model = attach(module, strategy, world)
    train(model, StrategyOptimizer(optimizer, strategy), world.rank, accumulate=accumulate)
    return flat(module)


def ddp_and_ours(world, accumulate):
    return trained_by_torch(world, accumulate), trained_by_us(world, accumulate)


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (2, 1), (2, 3), (3, 1), (4, 1)])
def test_ddp_is_torch_ddp_bitwise(workers, size, accumulate):
    for theirs, ours in workers(size, ddp_and_ours, accumulate):
        assert torch.equal(theirs, ours)


class GatheredMean(Strategy):
    """Averages parameter by parameter from gathered gradients: a strategy with a `reduce` of its own."""

    def reduce(self, units, gradients):
        assert [g.shape for g in gradients] == [(1, unit.numel) for unit in units]
        return [self.world.gather(g).mean(1) for g in gradients]


def gathered_and_dense(world):
    return trained_by_us(world, 1, GatheredMean()), trained_by_us(world, 1)


def test_a_strategy_that_reduces_by_parameter_sees_each_parameter(workers):
    for gathered, dense in workers(3, gathered_and_dense):
        assert torch.allclose(gathered, dense, rtol=1e-5, atol=1e-6)


def cast(world, dtype):
    return trained_by_us(world, 1, DDP(TwoPhaseCast(dtype))), trained_by_us(world, 1), world.traffic


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_halves_the_bytes_and_keeps_replicas_equal(workers, dtype):
    results = workers(2, cast, dtype)
    for rounded, exact, _ in results:
        assert torch.equal(rounded, results[0][0])
        assert not torch.equal(rounded, exact)
        assert torch.allclose(rounded, exact, atol=0.05)
    numel = flat(small_model()).numel()
    start = 2 * 32  # both runs compare their first weights by a digest
    assert results[0][2].wire_bytes == pytest.approx(STEPS * numel * (2 + 4) + start, abs=STEPS * 2)  # an odd d is padded


def counted_locally(world):
    calls = []
    for name in (
        "all_reduce",
        "broadcast",
        "all_gather_into_tensor",
        "all_gather_single",
        "all_gather",
        "barrier",
        "reduce",
        "send",
        "isend",
    ):
        setattr(dist, name, lambda *a, name=name, **k: calls.append(name))
    world.traffic.collectives = 0
    module = small_model()
    strategy = Strategy()
    strategy.begin(torch.zeros(1, 1), None, world)
    optimizer = StrategyOptimizer(torch.optim.SGD(module.parameters(), 0.1), strategy)
    from disttrain.strategies.attach import PreparedModule

    train(PreparedModule(module, strategy, None), optimizer, world.rank)
    return calls, world.traffic.collectives


def test_no_communication_is_none(workers):
    assert workers(2, counted_locally) == [([], 0)] * 2


def starts_from_worker_zero(world):
    module = nn.BatchNorm1d(4)
    module.weight.data += world.rank
    module.running_mean += 10 * world.rank
    attach(module, Strategy(), world)
    return module.weight.detach().clone(), module.running_mean.clone()


def test_different_starts_become_worker_zeros(workers):
    for weight, running_mean in workers(3, starts_from_worker_zero):
        assert torch.equal(weight, torch.ones(4))
        assert torch.equal(running_mean, torch.zeros(4))


def one_bad_gradient(world):
    module = small_model()
    strategy = DDP(Dense())
    model = attach(module, strategy, world)
    optimizer = StrategyOptimizer(torch.optim.AdamW(module.parameters(), 1e-2), strategy)
    train(model, optimizer, world.rank, steps=[0])
    before = flat(module), copy.deepcopy(optimizer.state_dict()["state"])
    inputs, targets = batch(1, world.rank)
    loss = (model(inputs) - targets).square().mean() * (float("nan") if world.rank == 1 else 1.0)
    loss.backward()
    optimizer.step()
    same_state = all(
        torch.equal(value, optimizer.state_dict()["state"][p][key])
        for p, entries in before[1].items()
        for key, value in entries.items()
    )
    return torch.equal(before[0], flat(module)), same_state, vars(optimizer.counts)


def test_a_nan_on_one_worker_makes_all_skip_the_step(workers):
    counts = {"steps": 2, "updates": 1, "consecutive_skips": 1}
    assert workers(2, one_bad_gradient) == [(True, True, counts)] * 2


def schedules_and_hooks(world):
    module = small_model()
    strategy = Strategy()
    model = attach(module, strategy, world)
    inner = torch.optim.SGD(module.parameters(), 0.5)
    optimizer = StrategyOptimizer(inner, strategy, multiplier=lambda update: 1.0 / (update + 1), clip_norm=1e-3)
    rates, called = [], []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    for step in range(3):
        before = flat(module)
        train(model, optimizer, world.rank, steps=[step])
        rates.append(inner.param_groups[0]["lr"])
        moved = float((flat(module) - before).norm())
        assert moved <= rates[-1] * 1e-3 * 1.01, "clipped to the norm"
    return rates, len(called), isinstance(optimizer, torch.optim.Optimizer)


def test_the_wrapped_optimizer_drives_schedule_clipping_and_hooks(workers):
    assert workers(1, schedules_and_hooks) == [([0.5, 0.25, 0.5 / 3], 3, True)]


def users_scheduler(world):
    module = small_model()
    strategy = Strategy()
    model = attach(module, strategy, world)
    optimizer = StrategyOptimizer(torch.optim.SGD(module.parameters(), 0.5), strategy)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    for step in range(2):
        train(model, optimizer, world.rank, steps=[step])
        scheduler.step()
    return optimizer.param_groups[0]["lr"]


def test_a_users_own_scheduler_works_on_the_wrapped_optimizer(workers):
    assert workers(1, users_scheduler) == [pytest.approx(0.005)]


def swapped(world):
    module = small_model()
    strategy = Strategy()
    model = attach(module, strategy, world)
    before = flat(module)
    with parameters_as(strategy.x, torch.zeros_like(strategy.x)):
        inside = flat(module).abs().sum().item()
    names = list(model.state_dict())
    return inside, torch.equal(before, flat(module)), names == list(small_model().state_dict())


def test_evaluation_parameters_are_swapped_in_and_out(workers):
    assert workers(1, swapped) == [(0.0, True, True)]
