"""Several optimizers combined cannot be told from a single one."""

import io
import pickle
from copy import deepcopy

import pytest
import torch
from small_modules import loss_of, same_parameters, split, tiny, train, twins
from torch.optim import SGD, AdamW, Muon
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from disttrain.optim import AdamWConfig, CombinedOptimizer, MuonConfig


def combine(module):
    """Muon, AdamW and SGD, in one, with two groups in the middle."""
    matrices, rest = split(module, "matrix")
    vectors = [each for each in rest if each.ndim < 2]
    first, *others = [each for each in rest if each.ndim >= 2]
    middle = AdamW([{"params": [first], "lr": 3e-3}, {"params": others}], lr=2e-3)
    return CombinedOptimizer([Muon(matrices, lr=0.02), middle, SGD(vectors, lr=0.1, momentum=0.9)])


def test_groups_are_the_parts_own_dicts():
    optimizer = combine(tiny())
    parts = [group for part in optimizer.parts for group in part.param_groups]
    assert len(optimizer.param_groups) == 4
    assert all(one is other for one, other in zip(optimizer.param_groups, parts, strict=True))


def test_combined_steps_as_the_parts_do():
    ours, theirs = twins()
    assert same_parameters(train(ours, combine(ours)), train(theirs, *combine(theirs).parts))


def test_state_dict_has_the_layout_of_a_single_optimizer():
    module = tiny()
    optimizer = combine(module)
    train(module, optimizer)
    saved = optimizer.state_dict()
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    assert set(saved) == {"state", "param_groups"}
    assert numbers == list(range(len(list(module.parameters())))) == sorted(saved["state"])
    assert torch.optim.AdamW(module.parameters()).state_dict().keys() == saved.keys()


@pytest.mark.parametrize("steps_before", [0, 3])
def test_saved_and_loaded_continues_bitwise(steps_before):
    module = tiny()
    optimizer = combine(module)
    train(module, optimizer, steps=range(steps_before))
    file = io.BytesIO()
    torch.save((module.state_dict(), optimizer.state_dict()), file)
    train(module, optimizer, steps=range(3, 6))

    weights, state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed = tiny(seed=1)
    resumed.load_state_dict(weights)
    other = combine(resumed)
    other.load_state_dict(state)
    assert same_parameters(train(resumed, other, steps=range(3, 6)), module)


def test_a_scheduler_made_before_loading_still_steers_the_parts():
    module = tiny()
    optimizer = combine(module)
    scheduler = LambdaLR(optimizer, lambda update: 0.5**update)
    optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    train(module, optimizer, steps=range(1))
    scheduler.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.01, 1.5e-3, 1e-3, 0.05]


@pytest.mark.parametrize("other", ["fewer groups", "other sizes"])
def test_a_state_of_another_shape_is_refused_before_anything_is_loaded(other):
    module = tiny()
    optimizer = combine(module)
    train(module, optimizer, steps=range(2))
    before = deepcopy(optimizer.state_dict())
    wrong = deepcopy(before)
    wrong["param_groups"][0]["lr"] = 7.0
    wrong["param_groups"][-1]["params"].pop()
    wrong["param_groups"] = wrong["param_groups"][: -1 if other == "fewer groups" else None]
    with pytest.raises(ValueError, match="groups of"):
        optimizer.load_state_dict(wrong)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


@pytest.mark.parametrize("schedule", [lambda o: CosineAnnealingLR(o, 5), lambda o: LambdaLR(o, lambda update: 1 / (update + 1))])
def test_schedulers_scale_every_part(schedule):
    ours, theirs = twins()
    combined = combine(ours)
    parts = combine(theirs).parts
    schedulers = [schedule(combined)], [schedule(part) for part in parts]
    for step in range(5):
        train(ours, combined, steps=[step])
        train(theirs, *parts, steps=[step])
        for scheduler in [*schedulers[0], *schedulers[1]]:
            scheduler.step()
    assert same_parameters(ours, theirs)


def test_one_cycle_without_momentum_works():
    module = tiny()
    optimizer = combine(module)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=4, cycle_momentum=False)
    train(module, optimizer, steps=range(1))
    scheduler.step()
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_reaches_every_part(to_none):
    module = tiny()
    optimizer = combine(module)
    loss_of(module, 0).backward()
    optimizer.zero_grad(set_to_none=to_none)
    assert all(each.grad is None if to_none else not each.grad.any() for each in module.parameters())


def test_a_closure_runs_once_with_gradients_and_gives_the_loss():
    module, twin = twins()
    optimizer, calls = combine(module), []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(module, 0)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() == loss_of(twin, 0).item()
    assert same_parameters(module, train(twin, combine(twin), steps=range(1)))


def test_state_is_a_view_that_creates_nothing_in_the_wrong_part():
    module = tiny()
    optimizer = combine(module)
    assert len(optimizer.state) == 0
    assert module.norm.weight not in optimizer.state
    train(module, optimizer, steps=range(1))
    muon, adamw, _ = optimizer.parts
    assert optimizer.state[module.up.weight] is muon.state[module.up.weight]
    assert set(optimizer.state) == set(module.parameters())
    assert (len(muon.state), len(adamw.state), len(optimizer.state)) == (2, 3, 12)
    optimizer.state[module.up.weight] = {}
    assert muon.state[module.up.weight] == {}
    optimizer.state.clear()
    assert [len(part.state) for part in optimizer.parts] == [0, 0, 0]


def test_a_strangers_state_is_a_key_error():
    with pytest.raises(KeyError):
        combine(tiny()).state[torch.zeros(3)]


@pytest.mark.parametrize("copy", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_trains_on_by_itself(copy):
    module = tiny()
    optimizer = combine(module)
    train(module, optimizer)
    other, copied = copy((module, optimizer))
    train(module, optimizer, steps=range(5, 8))
    assert not same_parameters(other, module)
    assert same_parameters(train(other, copied, steps=range(5, 8)), module)


def test_a_gradient_scaler_works():
    """A power of two scales gradients exactly."""
    module, twin = twins()
    optimizer, scaler = combine(module), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(module, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert same_parameters(module, train(twin, combine(twin), steps=range(3)))


def test_hooks_around_loading_and_stepping_run():
    module = tiny()
    optimizer, heard = combine(module), []
    optimizer.register_load_state_dict_pre_hook(lambda _, state: {**state, "param_groups": state["groups"]})
    optimizer.register_load_state_dict_post_hook(lambda _: heard.append("loaded"))
    optimizer.register_step_post_hook(lambda *_: heard.append("stepped"))
    saved = optimizer.state_dict()
    optimizer.load_state_dict({"state": saved["state"], "groups": saved["param_groups"]})
    train(module, optimizer, steps=range(1))
    assert heard == ["loaded", "stepped"]


def test_further_groups_are_refused_with_the_reason():
    with pytest.raises(TypeError, match="before combining"):
        combine(tiny()).add_param_group({"params": [torch.zeros(2, requires_grad=True)]})


def test_nothing_to_combine_and_shared_parameters_are_refused():
    module = tiny()
    with pytest.raises(ValueError, match="at least one"):
        CombinedOptimizer([])
    with pytest.raises(ValueError, match="more than one parameter group"):
        CombinedOptimizer([SGD(module.parameters(), lr=1.0), AdamW(module.up.parameters())])


def test_the_repr_shows_every_group():
    assert repr(combine(tiny())).count("Parameter Group") == 4


def test_one_config_cannot_load_anothers_state():
    module = tiny()
    with pytest.raises(ValueError, match="groups of"):
        MuonConfig(roles={"up.weight": "head"}).build(module).load_state_dict(AdamWConfig().build(module).state_dict())
