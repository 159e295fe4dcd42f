"""Compressed gradients in real DDP: identity is DDP, buckets do not matter, a bad step leaves no trace, states survive."""

import contextlib
import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from disttrain.compression import EF14, EF21, EF21SGDM, BlockTopK, EControl, Feedback, Identity, ScaledSign, TopK
from disttrain.compression.reduce import Dense
from disttrain.compression.sparse import FP32
from disttrain.strategies import DDP, Compressed, compress_gradients
from disttrain.strategies.attach import StrategyOptimizer, attach

STEPS = 8
TOP = BlockTopK(2, 16)


def small_model(layers=2):
    torch.manual_seed(0)
    hidden = [part for _ in range(layers) for part in (nn.Linear(33, 33), nn.Tanh())]
    return nn.Sequential(nn.Linear(6, 33), nn.Tanh(), *hidden, nn.Linear(33, 3))


def batch(step, rank):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(5, 6, generator=generator), torch.randn(5, 3, generator=generator)


def loss(model, step, rank):
    inputs, targets = batch(step, rank)
    return (model(inputs) - targets).square().mean()


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def train(model, optimizer, rank, steps=range(STEPS)):
    for step in steps:
        loss(model, step, rank).backward()
        optimizer.step()
        optimizer.zero_grad()


def attached(world, strategy):
    module = small_model()
    model = attach(module, strategy, world)
    optimizer = StrategyOptimizer(torch.optim.SGD(module.parameters(), 0.1, momentum=0.5), strategy)
    return module, model, optimizer


def trained(world, strategy, steps=range(STEPS)):
    module, model, optimizer = attached(world, strategy)
    train(model, optimizer, world.rank, steps)
    return flat(module)


# --- the identity is DDP ---------------------------------------------------------------------------------------------


def identity_and_ddp(world):
    reference = trained(world, DDP(Dense()))
    rules = [Feedback(), EF14(), EF21(), EF21SGDM(1.0), EControl()]
    found = [
        trained(world, Compressed(Identity(), rule, name)) for rule in rules for name in ("gather", "two_phase", "all_reduce")
    ]
    warm = trained(world, Compressed(Identity(), EF21(), "gather", warmup_steps=3))
    return reference, [*found, warm]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_identity_is_ddp(workers, size):
    for reference, found in workers(size, identity_and_ddp):
        for each in found:
            assert torch.allclose(each, reference, rtol=1e-6, atol=1e-6)


def after_the_warmup(world):
    ddp = trained(world, DDP(Dense()), range(4))
    return ddp, trained(world, Compressed(TOP, EControl(), warmup_steps=4), range(4))


def test_a_warmup_is_ddp(workers):
    for ddp, warm in workers(2, after_the_warmup):
        assert torch.allclose(ddp, warm, rtol=1e-6, atol=1e-6)


# --- buckets ---------------------------------------------------------------------------------------------------------


def bare(world, layers=2, steps=STEPS, feedback=None, compressor=TOP, options=None, **settings):
    module = small_model(layers)
    ddp = DistributedDataParallel(module, **(options or {}))
    compression = compress_gradients(ddp, compressor, feedback, **settings)
    train(ddp, torch.optim.SGD(module.parameters(), 0.1, momentum=0.5), world.rank, range(steps))
    return flat(module), compression


def under_several_layouts(world, reducer):
    layouts = [{}, {"bucket_cap_mb": 0.004}, {"static_graph": True}, {"find_unused_parameters": True, "bucket_cap_mb": 0.01}]
    found = [bare(world, options=each, feedback=EControl(), reducer=reducer)[0] for each in layouts]
    return [*found, trained(world, Compressed(TOP, EControl(), reducer))]


@pytest.mark.parametrize("reducer", ["gather", "two_phase"])
def test_results_do_not_depend_on_buckets_nor_on_who_drives(workers, reducer):
    for found in workers(2, under_several_layouts, reducer):
        for each in found[1:]:
            assert torch.equal(each, found[0])


def many_buckets(world, reducer):
    own, compression = bare(world, layers=22, steps=20, options={"bucket_cap_mb": 1e-4}, reducer=reducer)
    return own, compression.traffic.collectives


@pytest.mark.parametrize("reducer", ["gather", "two_phase"])
def test_many_buckets_never_hang_and_replicas_stay_equal(workers, reducer):
    results = workers(3, many_buckets, reducer)
    assert results[0][1] >= 19 * 24, "there were that many buckets"
    for own, _ in results:
        assert torch.equal(own, results[0][0])


# --- a training step -------------------------------------------------------------------------------------------------


def accumulated_and_whole(world):
    ends = []
    for micro in (1, 4):
        strategy = Compressed(TOP, EF14())
        module, model, optimizer = attached(world, strategy)
        for step in range(STEPS):
            inputs, targets = (
                torch.cat(parts) for parts in zip(*(batch(10 * step + m, world.rank) for m in range(4)), strict=True)
            )
            for number, (x, y) in enumerate(zip(inputs.chunk(micro), targets.chunk(micro), strict=True), 1):
                with contextlib.nullcontext() if number == micro else model.no_sync():
                    ((model(x) - y).square().mean() / micro).backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(flat(module))
    return ends


def test_accumulated_gradients_are_compressed_once(workers):
    for whole, accumulated in workers(2, accumulated_and_whole):
        assert torch.allclose(whole, accumulated, atol=1e-5)


def one_bad_gradient(world, feedback, reducer):
    strategy = Compressed(TOP, feedback, reducer)
    module, model, optimizer = attached(world, strategy)
    train(model, optimizer, world.rank, range(3))
    before = flat(module), copy.deepcopy(strategy.shared | strategy.local)
    (loss(model, 3, world.rank) * (float("inf") if world.rank == 1 else 1.0)).backward()
    optimizer.step()
    optimizer.zero_grad()
    after = strategy.shared | strategy.local
    same = torch.equal(before[0], flat(module)) and all(torch.equal(before[1][name], after[name]) for name in after)
    counts = dict(vars(optimizer.counts))
    train(model, optimizer, world.rank, range(4, 6))
    return same, counts, flat(module)


@pytest.mark.parametrize("feedback", [EF14(), EF21SGDM(0.2), EControl()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("reducer", ["gather", "two_phase"])
def test_infinity_on_one_worker_makes_all_skip_and_leaves_no_trace(workers, feedback, reducer):
    results = workers(2, one_bad_gradient, feedback, reducer)
    for same, counts, end in results:
        assert same
        assert counts == {"steps": 4, "updates": 3, "consecutive_skips": 1}
        assert end.isfinite().all()
        assert torch.equal(end, results[0][2])


class Branches(nn.Module):
    """Two experts, of which a step uses one, the other, or on this worker none of a gate."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.even, self.odd = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x, expert):
        hidden = torch.tanh(self.stem(x))
        return self.even(hidden) if expert == 0 else self.odd(hidden)


def sends_with_unused(world):
    """EF14's books of the odd expert: what was applied, and what is left, against the sum of its gradients."""
    module, strategy = Branches(), Compressed(TopK(0.1), EF14(), "gather", find_unused_parameters=True)
    model = attach(module, strategy, world)
    optimizer = StrategyOptimizer(torch.optim.SGD(module.parameters(), 1.0), strategy)
    start, total = module.odd.weight.detach().clone(), torch.zeros(3, 16)
    for step in range(9):
        expert = [0, 1, world.rank][step % 3]  # nobody, everybody, or one worker uses the odd one
        inputs, targets = batch(step, world.rank)
        own = copy.deepcopy(module)
        (own(inputs, expert) - targets).square().mean().backward()
        if own.odd.weight.grad is not None:
            total += own.odd.weight.grad
        (model(inputs, expert) - targets).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    (unit,) = [unit for unit in strategy.layout.units if unit.name == "odd.weight"]
    left = strategy.mean.memory.of(unit)[0]["error"].view(3, 16)
    return start - module.odd.weight.detach(), total, left


def test_nothing_is_lost_of_parameters_that_take_no_part(workers):
    (applied, *first), (_, *second) = workers(2, sends_with_unused)
    mean_total, mean_left = (first[0] + second[0]) / 2, (first[1] + second[1]) / 2
    assert mean_left.abs().max() > 1e-3
    assert torch.allclose(applied, mean_total - mean_left, atol=1e-5)


def with_and_without_scaling(world):
    ends = []
    for scaling in (False, True):
        module = small_model()
        ddp = DistributedDataParallel(module)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2, enabled=scaling)
        compress_gradients(ddp, TOP, EControl(), scaler=scaler if scaling else None)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for step in range(STEPS):
            value = loss(ddp, step, world.rank) * (float("nan") if step == 3 and world.rank == 0 else 1.0)
            scaler.scale(value).backward()
            if scaling or step != 3:
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        ends.append(flat(module))
    return ends


def test_a_loss_scale_that_changes_changes_nothing(workers):
    for plain, scaled in workers(2, with_and_without_scaling):
        assert torch.equal(plain, scaled)


def differing_replicas(world):
    strategy = Compressed(TOP, checksum_every=2)
    module, model, optimizer = attached(world, strategy)
    train(model, optimizer, world.rank, range(4))
    if world.rank == 1:
        with torch.no_grad():
            module[0].bias[1] += 1e-3
    try:
        train(model, optimizer, world.rank, range(4, 6))
    except RuntimeError as error:
        return str(error)


def test_a_checksum_finds_the_worker_that_differs(workers):
    for message in workers(2, differing_replicas):
        assert "worker 1's parameters differ from worker 0's after 6 steps" in message


# --- bare --------------------------------------------------------------------------------------------------------------


def saved_and_loaded(world):
    straight, _ = bare(world, feedback=EControl(), reducer="two_phase")
    module = small_model()
    ddp = DistributedDataParallel(module)
    compression = compress_gradients(ddp, TOP, EControl(), reducer="two_phase")
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.5)
    train(ddp, optimizer, world.rank, range(3))
    file = io.BytesIO()
    torch.save([compression.state_dict(), module.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    again = small_model()
    ddp = DistributedDataParallel(again)
    compression = compress_gradients(ddp, TOP, EControl(), reducer="two_phase")
    optimizer = torch.optim.SGD(again.parameters(), 0.1, momentum=0.5)
    for live, state in zip((compression, again, optimizer), torch.load(file), strict=True):  # weights_only is the default
        live.load_state_dict(state)
    train(ddp, optimizer, world.rank, range(3, STEPS))
    with pytest.raises(ValueError, match="error is not in it"):
        compression.load_state_dict({})
    return straight, flat(again)


def test_a_bare_scripts_state_goes_on_bit_by_bit(workers):
    for straight, continued in workers(2, saved_and_loaded):
        assert torch.equal(straight, continued)


def inside_a_subgroup(world, reducer, compressor):
    """The mean over workers 1 and 2 of three; worker 0 has no part in it."""
    group = dist.new_group([1, 2])
    if world.rank == 0:
        return None
    module = small_model()
    ddp = DistributedDataParallel(module, process_group=group)
    compress_gradients(ddp, compressor, EF21(), reducer=reducer, warmup_steps=1)
    means = []
    for step in range(3):
        ddp.zero_grad()
        loss(ddp, step, world.rank).backward()
        means.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
        own = [copy.deepcopy(module) for _ in (1, 2)]
        for rank, each in enumerate(own, 1):
            each.zero_grad()
            loss(each, step, rank).backward()
        exact = torch.stack([torch.cat([p.grad.flatten() for p in each.parameters()]) for each in own]).mean(0)
        assert torch.allclose(means[-1], exact, atol=1e-5)
    return means[-1]


@pytest.mark.parametrize(
    ("reducer", "compressor"), [("gather", TopK(1.0, FP32)), ("two_phase", TopK(1.0, FP32)), ("all_reduce", Identity())]
)
def test_a_ddp_over_some_ranks_averages_theirs(workers, reducer, compressor):
    _, one, other = workers(3, inside_a_subgroup, reducer, compressor)
    assert torch.equal(one, other)


def one_ignored(world):
    module = small_model()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ["2.bias"])
    ddp = DistributedDataParallel(module)
    compression = compress_gradients(ddp, TOP, EF14())
    for step in range(3):
        ddp.zero_grad()
        loss(ddp, step, world.rank).backward()
    return int(compression.state_dict()["exchanges"])


def test_a_backward_is_one_exchange_also_if_ddp_ignores_a_parameter(workers):
    assert workers(2, one_ignored) == [3, 3]


def another_ranks_state(world):
    compression = bare(world)[1]
    state = compression.state_dict() | {"rank_and_size": torch.tensor([1 - world.rank, 2])}
    with pytest.raises(ValueError, match=f"the state is of rank {1 - world.rank} of 2, this is rank {world.rank} of 2"):
        compression.load_state_dict(state)
    with pytest.raises(ValueError, match="reducer must be one of auto, gather, two_phase, all_reduce, got 'two-phase'"):
        Compressed(TOP, reducer="two-phase")


def test_another_ranks_state_is_refused(workers):
    workers(2, another_ranks_state)


def under_the_python_reducer(world):
    torch._dynamo.config.optimize_ddp = "python_reducer"
    ddp = DistributedDataParallel(small_model())
    compress_gradients(ddp, ScaledSign())
    try:
        loss(ddp, 0, world.rank).backward()
    except RuntimeError as error:
        return str(error)


def test_the_python_reducer_is_refused(workers):
    (message,) = workers(1, under_the_python_reducer)
    assert "set torch._dynamo.config.optimize_ddp to True" in message
