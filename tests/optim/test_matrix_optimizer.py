"""What Muon, SOAP and COSMOS promise as torch optimizers: about gradients, and about state, its dtypes and checkpoints."""

import copy
import warnings

import pytest
import torch
from contract import (
    SHAPES,
    each_dtype,
    each_optimizer,
    everything,
    give_gradients,
    groups,
    parameters,
    same,
    saved,
    tensors_of,
    train,
)
from matrices import deviation, gaussian
from torch import nn

from disttrain.optim import COSMOS, SOAP, Muon

# --- gradients -------------------------------------------------------------------------------------------------------


@each_optimizer
@each_dtype
def test_gradients_keep_every_bit(make, dtype):
    params = parameters(dtype)
    optimizer = make(groups(params))
    for step in range(3):
        give_gradients(params, step)
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(map(torch.equal, [p.grad for p in params], before))


@each_optimizer
def test_without_a_gradient_a_parameter_rests_and_the_others_do_not_notice(make):
    params, others = parameters(), parameters()
    optimizer, undisturbed = make(groups(params)), make(groups([p for i, p in enumerate(others) if i not in (1, 2)]))
    train(optimizer, params, range(1)), train(undisturbed, others, range(1))
    before = everything(optimizer, params[1:3])
    for step in range(1, 4):
        give_gradients(params, step), give_gradients(others, step)
        params[1].grad = params[2].grad = None
        optimizer.step(), undisturbed.step()
    assert same(everything(optimizer, params[1:3]), before)
    for i in (0, 3, 4):
        assert torch.equal(params[i], others[i])


@each_optimizer
def test_parameters_of_other_ages_step_as_if_alone(make):
    """One rests at first; from then on it is younger than the other of its shape."""
    together, alone = parameters(shapes=[(6, 8)] * 2), parameters(shapes=[(6, 8)] * 2)
    optimizer, (first, second) = make(together), [make([p]) for p in alone]
    for step in range(5):
        give_gradients(together, step), give_gradients(alone, step)
        if step < 2:
            together[1].grad = None
        else:
            second.step()
        first.step(), optimizer.step()
    assert all(map(torch.equal, together, alone))


@each_optimizer
def test_no_gradient_at_all_is_no_step(make):
    params = parameters()
    optimizer = make(groups(params))
    before = everything(optimizer, params)
    optimizer.step()
    assert same(everything(optimizer, params), before)


@each_optimizer
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [0, 3, 4], ids=["first", "last matrix", "adamw"])
def test_a_gradient_that_is_not_finite_changes_nothing_at_all(make, bad, where):
    params = parameters()
    optimizer = make(groups(params))
    train(optimizer, params, range(3))
    before = everything(optimizer, params)
    give_gradients(params, 3)
    params[where].grad.view(-1)[2] = bad
    optimizer.step()
    assert same(everything(optimizer, params), before)


@each_optimizer
@pytest.mark.parametrize("shape", [(6, 8), (64, 48)])
def test_zero_gradients_move_nothing(make, shape):
    params = parameters(shapes=[shape])
    optimizer = make(params, weight_decay=0.0)
    before = params[0].detach().clone()
    for _ in range(3):
        params[0].grad = torch.zeros(shape)
        optimizer.step()
    assert torch.equal(params[0], before)
    assert all(value.isfinite().all() for value in tensors_of(optimizer, params[0]).values())


@each_optimizer
@pytest.mark.parametrize("scale", [1e-12, 1e8])
def test_gradients_of_any_usual_scale_are_stepped(make, scale):
    params = parameters()
    optimizer = make(groups(params))
    for step in range(4):
        before = params[0].detach().clone()
        give_gradients(params, step, scale)
        optimizer.step()
        assert all(p.isfinite().all() for p in params)
    assert not torch.equal(params[0], before)


@each_optimizer
def test_views_and_transposed_parameters_step_as_copies_do(make):
    whole = nn.Parameter(gaussian(8, 6, dtype=torch.float32))
    strided = nn.Parameter(whole.detach().clone().mT.contiguous().mT)
    assert not strided.is_contiguous()
    optimizers = make([whole]), make([strided])
    for step in range(4):
        give_gradients([whole], step)
        strided.grad = torch.stack([whole.grad] * 2, -1)[..., 0]
        for optimizer in optimizers:
            optimizer.step()
    assert deviation(strided, whole) < 1e-6


# --- state -----------------------------------------------------------------------------------------------------------


def numbers(make, m, n):
    """How many numbers an optimizer may keep for an [m, n] matrix."""
    r = min(3, m, n)
    cosmos = m * n + r * (m + n) + r * r
    return {Muon: m * n, SOAP: 2 * m * n + 2 * m * m + 2 * n * n, COSMOS: cosmos}[make.func]


@each_optimizer
@each_dtype
def test_state_is_as_large_as_the_formula_says_and_shares_no_memory(make, dtype):
    params = parameters(dtype, SHAPES)
    optimizer = make(params)
    for steps in (range(0), range(3)):
        train(optimizer, params, steps)
        for p in params:
            held = {key: value for key, value in tensors_of(optimizer, p).items() if key != "step"}
            storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in held.values()}
            assert len(storages) == len(held)
            assert sum(storages.values()) == 4 * numbers(make, *p.shape)


@each_optimizer
@each_dtype
def test_state_is_there_from_the_start_in_fp32_with_the_same_keys(make, dtype):
    params = parameters(dtype)
    optimizer = make(groups(params))
    keys = [set(optimizer.state[p]) for p in params]
    assert all("step" in each and len(each) > 1 for each in keys)
    train(optimizer, params)
    assert [set(optimizer.state[p]) for p in params] == keys
    assert {value.dtype for p in params for value in tensors_of(optimizer, p).values()} == {torch.float32}


@each_optimizer
def test_parameters_in_double_precision_have_state_in_double_precision(make):
    params = parameters(torch.float64)
    optimizer = make(groups(params))
    train(optimizer, params)
    assert {v.dtype for p in params[:4] for key, v in tensors_of(optimizer, p).items() if key != "step"} == {torch.float64}


@each_optimizer
@each_dtype
def test_saved_and_loaded_it_continues_bit_for_bit(make, dtype):
    straight, broken = parameters(dtype), parameters(dtype)
    train(make(groups(straight)), straight, range(7))
    before = make(groups(broken))
    train(before, broken, range(3))
    state = saved(before)
    resumed = [nn.Parameter(p.detach().clone()) for p in broken]
    after = make(groups(resumed))
    after.load_state_dict(state)
    assert same(everything(after, resumed), everything(before, broken))
    assert {v.dtype for p in resumed for v in tensors_of(after, p).values()} == {torch.float32}
    train(after, resumed, range(3, 7))
    assert all(map(torch.equal, resumed, straight))


@each_optimizer
def test_saved_before_the_first_step_it_starts_as_if_new(make):
    straight, resumed = parameters(), parameters()
    after = make(groups(resumed))
    after.load_state_dict(saved(make(groups(straight))))
    assert all(map(torch.equal, train(after, resumed), train(make(groups(straight)), straight)))


@each_optimizer
def test_loading_copies(make):
    params = parameters()
    optimizer, other = make(groups(params)), make(groups(parameters()))
    train(optimizer, params, range(2))
    other.load_state_dict(optimizer.state_dict())
    before = everything(other, [p for group in other.param_groups for p in group["params"]])
    train(optimizer, params, range(2, 4))
    assert same(everything(other, [p for group in other.param_groups for p in group["params"]]), before)


@each_optimizer
@each_dtype
def test_a_deep_copy_continues_alike_and_apart(make, dtype):
    params = parameters(dtype)
    optimizer = make(groups(params))
    train(optimizer, params, range(3))
    copied, copied_params = copy.deepcopy((optimizer, params))
    train(copied, copied_params, range(3, 6))
    assert not torch.equal(copied_params[0], params[0])
    assert all(map(torch.equal, copied_params, train(optimizer, params, range(3, 6))))
    assert same(everything(copied, copied_params), everything(optimizer, params))


def test_a_rank_above_the_matrix_is_clamped_with_one_warning():
    params = parameters(shapes=[(6, 8), (4, 20), (30, 20)])
    with pytest.warns(UserWarning, match="rank=12 .* clamped") as caught:
        optimizer = COSMOS(params, rank=12)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [optimizer.state[p]["gram"].shape[-1] for p in params] == [6, 4, 12]
    train(optimizer, params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        COSMOS(parameters(shapes=[(12, 12)]), rank=12)


def test_another_rank_is_refused_by_both_values_and_nothing_is_loaded():
    params, others = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
    optimizer, other = COSMOS(params, rank=3), COSMOS(others, rank=2)
    train(optimizer, params), train(other, others, range(2))
    before = everything(other, others)
    with pytest.raises(ValueError, match=r"rank=3 .* rank=2"):
        other.load_state_dict(saved(optimizer))
    assert same(everything(other, others), before)
    assert other.param_groups[0]["rank"] == 2


@each_optimizer
def test_another_optimizers_state_is_refused_and_nothing_is_loaded(make):
    """Not taken for a state with nothing in it."""
    params, others = parameters(shapes=[(6, 8), (8, 6)]), parameters(shapes=[(6, 8), (8, 6)])
    other = SOAP(others) if make.func is not SOAP else Muon(others)
    optimizer = make(params)
    train(optimizer, params, range(2)), train(other, others, range(2))
    before, settings = everything(optimizer, params), dict(optimizer.param_groups[0])
    with pytest.raises(ValueError, match=f"{other.algorithm!r}.*{optimizer.algorithm!r}"):
        optimizer.load_state_dict(saved(other))
    assert same(everything(optimizer, params), before)
    assert optimizer.param_groups[0].keys() == settings.keys()


@each_optimizer
def test_a_state_of_other_groups_is_refused_and_nothing_is_loaded(make):
    params, others = parameters(shapes=[(6, 8), (8, 6)]), parameters(shapes=[(6, 8)])
    optimizer, other = make(params), make(others)
    train(optimizer, params, range(2)), train(other, others, range(2))
    before = everything(optimizer, params)
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict(saved(other))
    assert same(everything(optimizer, params), before)
