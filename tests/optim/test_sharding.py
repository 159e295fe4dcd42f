"""Matrices dealt to the workers: who gets what, and that nobody can tell from the result."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from disttrain.optim import COSMOS, SOAP, Muon
from disttrain.optim.sharding import deal
from disttrain.worlds import StackedWorld
from disttrain.worlds.traffic import all_gather_wire_bytes

KINDS = {
    "muon": lambda params: Muon(params, lr=0.02, ns_dtype=torch.float32),
    "soap": lambda params: SOAP(params, lr=3e-3, frequency=2),
    "cosmos": lambda params: COSMOS(params, lr=0.02, rank=2, ns_dtype=torch.float32),
}
STEPS = 5


def module_of(layers=3):
    torch.manual_seed(0)
    widths = [6, *[8] * layers, 2]
    return nn.Sequential(*(nn.Linear(a, b, bias=index == 0) for index, (a, b) in enumerate(pairwise(widths))))


def optimizer_of(kind, module):
    matrices = [(name, p) for name, p in module.named_parameters() if p.ndim == 2]
    rest = [(name, p) for name, p in module.named_parameters() if p.ndim < 2]
    return KINDS[kind]([{"params": matrices}, {"params": rest, "algorithm": "adamw"}])


def give_gradients(module, step, without=()):
    generator = torch.Generator().manual_seed(step)
    for name, p in module.named_parameters():
        p.grad = None if name in without else torch.randn(p.shape, generator=generator)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained(kind, world=None, dtype="float32", layers=3, without=()):
    module = module_of(layers)
    optimizer = optimizer_of(kind, module)
    if world is not None:
        optimizer.shard(world, dtype)
    for step in range(STEPS):
        give_gradients(module, step, without)
        optimizer.step()
    return module, optimizer


def sharded(world, *arguments):
    module, optimizer = trained(arguments[0], world, *arguments[1:])
    kept = sum(value.numel() for name, p in module.named_parameters() if p.ndim == 2 for value in optimizer.state[p].values())
    return flat(module), kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "layers"), [(1, 3), (2, 3), (3, 3), (4, 1)])
def test_sharded_is_unsharded_for_any_number_of_workers(workers, kind, size, layers):
    expected, _ = trained(kind, layers=layers)
    whole = sharded(StackedWorld(1), kind, "float32", layers)[1]
    results = workers(size, sharded, kind, "float32", layers)
    for parameters, _ in results:
        assert torch.equal(parameters, results[0][0]), "workers agree bitwise"
        assert torch.allclose(parameters, flat(expected), rtol=1e-6, atol=1e-7)
    assert sum(kept for _, kept in results) == whole, "every state is kept once"


def test_in_16_bits_all_apply_what_went_over_the_wire(workers):
    exact = flat(trained("muon")[0])
    rounded = workers(3, sharded, "muon", "bfloat16")
    assert all(torch.equal(parameters, rounded[0][0]) for parameters, _ in rounded)
    assert torch.equal(rounded[0][0], sharded(StackedWorld(1), "muon", "bfloat16")[0]), "one worker alone rounds as well"
    assert not torch.equal(rounded[0][0], exact)
    assert torch.allclose(rounded[0][0], exact, atol=STEPS * 0.02 * 2**-7)


def missing_on_one(world):
    module = module_of()
    optimizer = optimizer_of("muon", module)
    optimizer.shard(world, "float32")
    for step in range(STEPS):
        give_gradients(module, step, ("1.weight", "2.weight") if step == 2 and world.rank == 1 else ())
        optimizer.step()
    return flat(module)


def test_a_gradient_that_one_worker_lacks_neither_hangs_nor_parts_the_workers(workers):
    first, second = workers(2, missing_on_one)
    assert torch.equal(first, second)


def bytes_counted(world):
    before = copy.copy(world.traffic)
    trained("cosmos", world, "bfloat16")
    return world.traffic.payload_bytes - before.payload_bytes, world.traffic.wire_bytes - before.wire_bytes


def test_a_step_is_one_gather_of_the_largest_share(workers):
    module = module_of()
    # 8×8 twice, 8×6 and 2×8: the two square ones go to different workers, then 8×6, then 2×8.
    owners = deal({name: cost(p) for name, p in module.named_parameters() if p.ndim == 2}, 2)
    shares = [sum(1 + p.numel() for name, p in module.named_parameters() if owners.get(name) == rank) for rank in (0, 1)]
    for payload, wire in workers(2, bytes_counted):
        assert payload == STEPS * 2 * max(shares)
        assert wire == all_gather_wire_bytes(payload, 2)


def cost(p):
    m, n = sorted(p.shape)
    return m * m * (2 * n + m)


def state_restored(world, size):
    """Train on, from the whole state that a world of another size has saved."""
    before, optimizer = trained("cosmos", world if world.size == size else None, "float32")
    state = optimizer.whole_state()
    after = module_of()
    after.load_state_dict(before.state_dict())
    resumed = optimizer_of("cosmos", after)
    resumed.shard(world, "float32")
    saved = resumed.state_dict()
    numbers = [p for group in optimizer.param_groups for p in group["params"]]
    saved["state"] = {number: state[p] for number, p in enumerate(numbers)}
    resumed.load_state_dict(saved)
    outcomes = []
    for module, each in ((before, optimizer), (after, resumed)):
        give_gradients(module, 99)
        each.step()
        outcomes.append(flat(module))
    return outcomes


@pytest.mark.parametrize("saved_by", [1, 2])
def test_state_gathered_and_dealt_anew_goes_on_bitwise(workers, saved_by):
    for straight, resumed in workers(2, state_restored, saved_by):
        assert torch.equal(straight, resumed) if saved_by == 2 else torch.allclose(straight, resumed, rtol=1e-6, atol=1e-7)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 8))
def test_every_matrix_has_one_owner_and_no_worker_more_than_its_share(costs, size):
    named = {f"layer{number}": cost for number, cost in enumerate(costs)}
    owners = deal(named, size)
    assert owners.keys() == named.keys()
    assert owners == deal(dict(reversed(named.items())), size), "a pure function of names and costs"
    loads = [sum(cost for name, cost in named.items() if owners[name] == rank) for rank in range(size)]
    assert max(loads) <= sum(costs) / size + (1 - 1 / size) * max(costs) + 1e-9


def refused(world):
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (world.size,))
    matrix = nn.Parameter(distribute_tensor(torch.randn(4, 6), mesh, [Shard(0)]))
    with pytest.raises(ValueError, match="DTensor") as mistake:
        COSMOS([("up.weight", matrix)], rank=2)
    return str(mistake.value)


def test_a_parameter_of_which_a_worker_sees_a_part_is_refused_with_what_to_do(workers):
    for message in workers(2, refused):
        assert message.startswith("up.weight is a DTensor")
        assert "algorithm='adamw'" in message


def gathered_state(world):
    (matrix,) = parameters = [nn.Parameter(torch.ones(4, 4))]
    optimizer = COSMOS(parameters, rank=2)
    optimizer.shard(world, "bfloat16")
    for step in range(2):
        matrix.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return {entry: value.numpy() for entry, value in optimizer.whole_state()[matrix].items()}


def test_state_is_gathered_whole_from_fewer_matrices_than_workers(workers):
    first, second = workers(2, gathered_state)
    assert first.keys() == second.keys() == {"step", "momentum", "basis", "gram", "second"}
    assert all((first[entry] == second[entry]).all() for entry in first)
    assert first["step"] == 2


def test_groups_are_dealt_out_once():
    optimizer = Muon([nn.Parameter(torch.ones(4, 4))])
    optimizer.shard(StackedWorld(1))
    with pytest.raises(ValueError, match="add groups before shard"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4, 4))]})
    with pytest.raises(ValueError, match="no matrix to deal out"):
        Muon([{"params": [nn.Parameter(torch.ones(4))], "algorithm": "adamw"}]).shard(StackedWorld(1))
    with pytest.raises(ValueError, match="cannot be copied"):
        copy.deepcopy(optimizer)
