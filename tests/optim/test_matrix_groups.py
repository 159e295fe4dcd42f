"""Groups, settings and stacks of Muon, SOAP and COSMOS: every matrix is stepped as if alone, by the settings of its group."""

import pytest
import torch
from contract import SHAPES, each_dtype, each_optimizer, give_gradients, groups, parameters, saved, train
from matrices import deviation
from torch import nn

from disttrain.optim import COSMOS, SOAP, Muon

# --- groups and settings ---------------------------------------------------------------------------------------------


@each_optimizer
@each_dtype
def test_a_group_for_adamw_is_torchs_adamw(make, dtype):
    """Bit for bit in fp32; in bfloat16, that of a parameter rounded after each step, since its state is wider."""
    settings = {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}
    ours, theirs = parameters(dtype, [(4, 5), (7,)]), parameters(dtype, [(4, 5), (7,)])
    optimizer = make([{"params": ours, "algorithm": "adamw", **settings}])
    wide = [nn.Parameter(p.detach().float()) for p in theirs]
    adamw = torch.optim.AdamW(wide, **settings)
    for step in range(5):
        give_gradients(ours, step)
        for p, w in zip(ours, wide, strict=True):
            w.grad = p.grad.float()
        optimizer.step(), adamw.step()
        with torch.no_grad():
            for w in wide:
                w.copy_(w.to(dtype))
    assert all(torch.equal(p.float(), w) for p, w in zip(ours, wide, strict=True))
    for p, w in zip(ours, wide, strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], adamw.state[w]["exp_avg_sq"])


@each_optimizer
def test_a_group_has_settings_of_its_own(make):
    params, alone = parameters(shapes=[(6, 8)] * 2), parameters(shapes=[(6, 8)] * 2)
    optimizer = make([{"params": params[:1]}, {"params": params[1:], "lr": 0.5, "weight_decay": 0.25}])
    train(optimizer, params)
    train(make(alone[:1]), alone[:1])
    other = make(alone[1:], lr=0.5, weight_decay=0.25)
    for step in range(4):
        give_gradients(alone, step)
        other.step()
    assert all(map(torch.equal, params, alone))


@each_optimizer
def test_a_learning_rate_may_be_a_tensor_and_follow_a_schedule(make):
    by_float, by_tensor, by_schedule = parameters(), parameters(), parameters()
    first, second, third = make(groups(by_float)), make(groups(by_tensor)), make(groups(by_schedule))
    base = [group["lr"] for group in first.param_groups]
    for group in second.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    schedule = torch.optim.lr_scheduler.LambdaLR(third, lambda step: 1 / (1 + step))
    for step in range(4):
        for one, two, lr in zip(first.param_groups, second.param_groups, base, strict=True):
            one["lr"] = lr * (1 / (1 + step))
            two["lr"].fill_(one["lr"])
        for optimizer, params in ((first, by_float), (second, by_tensor), (third, by_schedule)):
            train(optimizer, params, [step])
        schedule.step()
    assert all(map(torch.equal, by_schedule, by_float))
    assert all(map(torch.equal, by_tensor[:4], by_float[:4]))
    assert deviation(by_tensor[4], by_float[4]) < 1e-6  # torch's AdamW multiplies by a tensor in another order


@each_optimizer
def test_the_constructor_takes_a_tensor_as_learning_rate(make):
    one, other = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
    assert all(map(torch.equal, train(make(one, lr=torch.tensor(0.25)), one), train(make(other, lr=0.25), other)))


@each_optimizer
def test_a_learning_rate_of_zero_moves_nothing(make):
    params = parameters(shapes=SHAPES)
    before = [p.detach().clone() for p in params]
    assert all(map(torch.equal, train(make(params, lr=0.0), params), before))


@each_optimizer
def test_decay_shrinks_by_lr_times_weight_decay_whatever_the_gradient(make):
    """Before the step; SOAP's after it, and not for the first gradient, which moves nothing."""
    plain, decayed = parameters(torch.float64, [(6, 8)]), parameters(torch.float64, [(6, 8)])
    without, with_decay = make(plain, lr=0.1, weight_decay=0.0), make(decayed, lr=0.1, weight_decay=0.5)
    for step in range(3):
        before, decayed_before = plain[0].detach().clone(), decayed[0].detach().clone()
        train(without, plain, [step]), train(with_decay, decayed, [step])
        moved = plain[0].detach() - before
        if make.func is SOAP:
            expected = 0.95 * (decayed_before + moved) if step else decayed_before
        else:
            expected = 0.95 * decayed_before + moved
        assert deviation(decayed[0], expected) < 1e-14


@each_optimizer
def test_a_closure_is_called_once_with_gradients_enabled(make):
    params = parameters()
    optimizer, calls = make(groups(params)), []

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    before = params[0].detach().clone()
    assert optimizer.step(closure).item() > 0
    optimizer.step(closure)
    assert calls == [True, True]
    assert not torch.equal(params[0], before)


@each_optimizer
def test_zero_grad_reaches_every_group(make):
    params = parameters()
    optimizer = make(groups(params))
    give_gradients(params, 0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@each_optimizer
def test_a_gradient_scaler_unscales_and_skips(make):
    params, plain = parameters(), parameters()
    optimizer, unscaled = make(groups(params)), make(groups(plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        give_gradients(params, step, scale=scaler.get_scale()), give_gradients(plain, step)
        scaler.scale(torch.zeros(()))  # as a loss is, which makes the scale a tensor
        if step == 2:
            params[1].grad[0, 0] = torch.inf
        else:
            unscaled.step()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 512
    assert all(map(torch.equal, params, plain))


# --- stacks ----------------------------------------------------------------------------------------------------------


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_matrices_are_stepped_together_as_they_are_alone(make, dtype):
    together, alone = parameters(dtype, [(6, 8)] * 3), parameters(dtype, [(6, 8)] * 3)
    optimizer, singles = make(together), [make([p]) for p in alone]
    for step in range(4):
        give_gradients(together, step), give_gradients(alone, step)
        for each in (optimizer, *singles):
            each.step()
    assert all(map(torch.equal, together, alone))


@each_optimizer
def test_a_neighbour_of_low_rank_changes_nothing(make):
    """Householder must not step in for a whole stack where one matrix needs it."""
    together, alone = parameters(shapes=[(6, 8)] * 2), parameters(shapes=[(6, 8)])
    optimizer, single = make(together), make(alone)
    for step in range(4):
        give_gradients(together, step), give_gradients(alone, step)
        together[1].grad = torch.zeros(6, 8)
        optimizer.step(), single.step()
    assert torch.equal(together[0], alone[0])
    assert together[1].isfinite().all()


@each_optimizer
def test_neither_order_nor_grouping_matters(make):
    one, other = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
    by_size = [{"params": [other[3], other[1]]}, {"params": [other[2], other[0]]}]
    first, second = make(one), make(by_size)
    for step in range(4):
        give_gradients(one, step), give_gradients(other, step)
        first.step(), second.step()
    assert all(map(torch.equal, one, other))


@each_optimizer
def test_parts_of_a_fused_matrix_are_stepped_as_matrices_of_their_own(make):
    fused = parameters(shapes=[(12, 8)])
    apart = [nn.Parameter(part.clone()) for part in fused[0].detach().split([5, 4, 3])]
    whole, single = make(fused, split=[5, 4, 3]), [make([p]) for p in apart]
    for step in range(4):
        give_gradients(fused, step)
        for p, grad in zip(apart, fused[0].grad.split([5, 4, 3]), strict=True):
            p.grad = grad.clone()
        for optimizer in (whole, *single):
            optimizer.step()
    assert torch.equal(fused[0], torch.cat(apart))


@each_optimizer
@pytest.mark.parametrize(("mode", "shape", "to_matrices"), [("flatten", (5, 2, 3), 1), ("batch", (3, 5, 6), 3)])
def test_more_axes_are_one_flat_matrix_or_a_batch_of_matrices(make, mode, shape, to_matrices):
    stacked = parameters(shapes=[shape])
    views = stacked[0].detach().flatten(1)[None] if mode == "flatten" else stacked[0].detach()
    apart = [nn.Parameter(view.clone()) for view in views]
    assert len(apart) == to_matrices
    optimizer, plain = make(stacked, more_axes=mode), make(apart)
    for step in range(4):
        give_gradients(stacked, step)
        for p, grad in zip(apart, stacked[0].grad.flatten(1)[None] if mode == "flatten" else stacked[0].grad, strict=True):
            p.grad = grad.clone()
        optimizer.step(), plain.step()
    assert torch.equal(stacked[0].detach().reshape(views.shape), torch.stack([p.detach() for p in apart]))


@each_optimizer
@each_dtype
def test_saved_parts_of_fused_matrices_continue_bit_for_bit(make, dtype):
    straight, broken = parameters(dtype, [(12, 8)]), parameters(dtype, [(12, 8)])
    train(make(straight, split=2), straight, range(6))
    before, after = make(broken, split=2), make(broken, split=2)
    train(before, broken, range(3))
    after.load_state_dict(saved(before))
    train(after, broken, range(3, 6))
    assert torch.equal(broken[0], straight[0])


# --- mistakes --------------------------------------------------------------------------------------------------------


@each_optimizer
@pytest.mark.parametrize(
    ("shape", "message"),
    [((7,), "no matrix.*adamw"), ((2, 3, 4), "more_axes"), ((), "no matrix")],
    ids=["vector", "3-D", "scalar"],
)
def test_what_is_no_matrix_is_refused_with_what_to_do(make, shape, message):
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.zeros(shape))])


@each_optimizer
@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"algorithm": "adam"}, "algorithm='adam'"),
        ({"lr": -1.0}, r"lr=-1\.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0"),
        ({"momentun": 0.9}, "momentun"),
        ({"more_axes": "flat"}, "more_axes='flat'"),
        ({"split": 4}, "6 rows.*split=4"),
        ({"split": [4, 3]}, "6 rows"),
    ],
)
def test_a_wrong_setting_is_named_and_the_optimizer_stays_as_it_was(make, group, message):
    params = parameters(shapes=[(6, 8)] * 2)
    optimizer = make(params[:1])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": params[1:], **group})
    assert len(optimizer.param_groups) == 1
    assert list(optimizer.state) == params[:1]


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (COSMOS, {"rank": 0}),
        (COSMOS, {"refresh_every": 0}),
        (COSMOS, {"gamma": -0.1}),
        (COSMOS, {"lr_ratio": -0.1}),
        (COSMOS, {"eps": -1.0}),
        (COSMOS, {"betas": (1.0, 0.9)}),
        (COSMOS, {"betas": (0.9, -0.1)}),
        (COSMOS, {"project": "out"}),
        (COSMOS, {"parity": "exact"}),
        (COSMOS, {"gamma_scaling": "wide"}),
        (COSMOS, {"coefficients": "keller"}),
        (Muon, {"momentum": 1.0}),
        (Muon, {"adjust": "rms"}),
        (Muon, {"coefficients": "keller"}),
        (SOAP, {"frequency": 0}),
        (SOAP, {"betas": (0.9, 1.0)}),
        (SOAP, {"max_size": -1}),
    ],
)
def test_settings_out_of_range_are_named(make, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        make(parameters(shapes=[(6, 8)]), **setting)


@each_optimizer
def test_a_parameter_belongs_to_one_group(make):
    params = parameters(shapes=[(6, 8)])
    with pytest.raises(ValueError, match="more than one parameter group"):
        make([{"params": params}, {"params": params}])


def test_parameters_of_the_same_name_are_stepped_by_their_own_gradients():
    first, second = (nn.Parameter(torch.zeros(4, 4)) for _ in range(2))
    first.grad, second.grad = torch.eye(4), torch.ones(4, 4)
    Muon([{"params": [("weight", first)]}, {"params": [("weight", second)]}], lr=1.0).step()
    alone = nn.Parameter(torch.zeros(4, 4))
    alone.grad = torch.eye(4)
    Muon([alone], lr=1.0).step()
    assert torch.equal(first, alone)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"params": [nn.Parameter(torch.ones(4, 4))], "split": 0}, "split=0 does not divide"),
        ({"params": [nn.Parameter(torch.ones(4, 4))], "split": (2.0, 2.0)}, "does not divide"),
        ({"params": [nn.Parameter(torch.ones(0, 4))]}, "no entry"),
        ({"params": [nn.Parameter(torch.ones(4, 4))], "ns_dtype": "bfloat16"}, "ns_dtype='bfloat16' must be"),
        ({"params": [nn.Parameter(torch.ones(4, 4))], "rank": 2.5}, "rank=2.5 must be a whole number"),
        ({"params": [nn.Parameter(torch.ones(4))], "algorithm": "adamw", "eps": -1.0}, "eps=-1.0 must be"),
        ({"params": [nn.Parameter(torch.ones(4))], "algorithm": "adamw", "betas": (0.9, 1.0)}, "betas=.* less than 1"),
        ({"params": [nn.Parameter(torch.ones(4, dtype=torch.complex64))], "algorithm": "adamw"}, "floating-point"),
    ],
)
def test_a_group_that_cannot_be_stepped_is_refused_and_not_added(group, words):
    optimizer = COSMOS([nn.Parameter(torch.ones(8, 8))], rank=2)
    with pytest.raises(ValueError, match=words):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


def test_a_fused_adamw_finds_its_step_where_its_parameters_are():
    on_device = nn.Parameter(torch.ones(4, device="meta"))
    for fused, device in ((True, "meta"), (None, "cpu")):
        optimizer = Muon([{"params": [on_device], "algorithm": "adamw", "fused": fused}])
        assert optimizer.state[on_device]["step"].device.type == device


def test_a_float16_gradient_whose_norm_float16_cannot_hold_is_a_step():
    p = nn.Parameter(torch.zeros(300, 300, dtype=torch.float16))
    p.grad = torch.full_like(p, 400)
    Muon([p], lr=1.0).step()
    assert p.abs().sum() > 0


def test_state_that_lacks_an_entry_is_refused():
    p = nn.Parameter(torch.ones(8, 4))
    p.grad = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    optimizer = Muon([("qkv", p)], split=2)
    optimizer.step()
    with pytest.raises(ValueError, match=r"qkv: the state to load has no step; was it split"):
        Muon([("qkv", p)]).load_state_dict(optimizer.state_dict())
