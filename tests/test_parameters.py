"""The flat vector is the model: same values, same memory, padding that stays zero."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from disttrain.parameters import FlatParameters, sha256_of

sizes = st.lists(st.integers(1, 40), min_size=2, max_size=5)


def mlp(widths):
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


@given(sizes, st.sampled_from([None, 1, 16, 256]))
def test_parameters_keep_their_values_and_become_views(widths, alignment):
    module = mlp(widths)
    before = copy.deepcopy(module.state_dict())
    flat = FlatParameters(module, alignment)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    flat.x.fill_(3.0)
    assert all((p == 3.0).all() for p in module.parameters())


@given(sizes, st.sampled_from([1, 16, 256]))
def test_every_parameter_starts_at_a_multiple_of_the_alignment(widths, alignment):
    layout = FlatParameters(mlp(widths), alignment).layout
    assert all(unit.offset % alignment == 0 for unit in layout.units)
    assert layout.numel == sum(p.numel() for p in mlp(widths).parameters())
    assert layout.d % alignment == 0


@given(sizes)
def test_padding_stays_zero_through_training(widths):
    module = mlp(widths)
    flat = FlatParameters(module)
    inside = torch.zeros(flat.layout.d, dtype=torch.bool)
    for unit in flat.layout.units:
        inside[unit.offset : unit.offset + unit.numel] = True
    optimizer = torch.optim.AdamW(module.parameters(), 0.1)
    module(torch.randn(3, widths[0])).sum().backward()
    optimizer.step()
    assert not flat.x[0][~inside].any()


def test_rows_of_several_workers_have_the_same_views():
    layout = FlatParameters(mlp([3, 4])).layout
    x = torch.randn(5, layout.d)
    weight = dict(layout.named(x))["0.weight"]
    assert weight.shape == (5, 4, 3)
    assert torch.equal(weight[2], layout.units[0].of(x[2]))


def test_tied_parameters_appear_once_and_frozen_ones_not():
    module = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False), "c": nn.Linear(4, 4)})
    module["b"].weight = module["a"].weight
    module["c"].requires_grad_(False)
    flat = FlatParameters(module)
    assert [unit.name for unit in flat.layout.units] == ["a.weight"]
    assert module["b"].weight is module["a"].weight


def test_a_scalar_parameter_has_a_place():
    module = nn.ParameterDict({"s": nn.Parameter(torch.tensor(2.0)), "v": nn.Parameter(torch.ones(3))})
    flat = FlatParameters(module)
    flat.x.mul_(2)
    assert module["s"].item() == 4.0


def test_mixed_dtypes_are_refused_with_both_names():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match=r"0\.weight is torch\.float32 on cpu, 1\.weight is torch\.float64"):
        FlatParameters(module)


def test_a_module_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        FlatParameters(nn.ReLU())


def test_the_digest_sees_a_single_bit_and_a_name():
    x = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    changed = {**x, "a": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}
    renamed = {"a": x["a"], "c": x["b"]}
    assert len({sha256_of(x), sha256_of(changed), sha256_of(renamed)}) == 3
    assert sha256_of(x) == sha256_of({name: value.clone() for name, value in reversed(x.items())})
