"""AdamW and SGD by config are torch's own, bit for bit, with decay where it is said to be."""

import pytest
import torch
from pydantic import ValidationError
from small_modules import same_parameters, split, train, twins
from torch import nn

from disttrain.optim import AdamWConfig, SGDConfig, optimizers

DECAYING = {
    "matrices": ("matrix", "conv", "head", "other"),
    "weights": ("matrix", "conv", "head", "other", "embedding"),
    "all": ("matrix", "conv", "head", "other", "embedding", "norm", "bias"),
}


def with_decay(module, decay, weight_decay):
    """Torch's groups, written by hand."""
    decaying, spared = split(module, *DECAYING[decay])
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@pytest.mark.parametrize("decay", sorted(DECAYING))
def test_adamw_is_torchs_adamw(decay):
    ours, theirs = twins()
    config = AdamWConfig(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3, decay=decay)
    by_hand = torch.optim.AdamW(with_decay(theirs, decay, 0.3), lr=0.01, betas=(0.8, 0.9), eps=1e-6)
    assert same_parameters(train(ours, config.build(ours)), train(theirs, by_hand))


@pytest.mark.parametrize("decay", sorted(DECAYING))
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, False), (0.8, True)])
def test_sgd_is_torchs_sgd(decay, momentum, nesterov):
    ours, theirs = twins()
    config = SGDConfig(lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=0.3, decay=decay)
    by_hand = torch.optim.SGD(with_decay(theirs, decay, 0.3), lr=0.05, momentum=momentum, nesterov=nesterov)
    assert same_parameters(train(ours, config.build(ours)), train(theirs, by_hand))


def test_decay_all_is_what_torch_does_with_plain_parameters():
    ours, theirs = twins()
    by_hand = torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    assert same_parameters(train(ours, AdamWConfig(decay="all").build(ours)), train(theirs, by_hand))


def test_roles_of_the_config_reach_the_groups():
    module, _ = twins()
    groups = AdamWConfig(roles={"up.weight": "embedding"}).build(module).param_groups
    assert {group["role"]: group["param_names"] for group in groups}["matrix"] == ["down.weight"]


def test_frozen_parameters_do_not_move():
    module, before = twins()
    module.up.requires_grad_(False)
    train(module, AdamWConfig(lr=0.1).build(module))
    assert same_parameters(module.up, before.up)
    assert not same_parameters(module.down, before.down)


@pytest.mark.parametrize("config", [AdamWConfig(), SGDConfig()])
def test_after_a_step_every_parameter_has_the_same_state_keys(config):
    module, _ = twins()
    optimizer = config.build(module)
    train(module, optimizer, steps=range(1))
    keys = {frozenset(optimizer.state[parameter]) for parameter in module.parameters()}
    assert len(keys) == 1
    assert keys.pop()


def test_a_default_step_does_not_depend_on_how_parameters_are_stacked():
    """What torch's fused CPU kernel breaks: there 7 entries alone and 7 among others round differently."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 7, generator=generator) / 50
    gradients = torch.randn(50, 64, 7, generator=generator) / 100
    stacked = nn.ParameterList([start.clone()])
    alone = nn.ParameterList(row.clone() for row in start)
    optimizers = AdamWConfig(decay="all").build(stacked), AdamWConfig(decay="all").build(alone)
    for gradient in gradients:
        for parameter, part in zip([*stacked, *alone], [gradient, *gradient], strict=True):
            parameter.grad = part.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(stacked[0], torch.stack(list(alone)))


def test_fused_is_the_same_mathematics():
    fused, plain = twins()
    train(fused, AdamWConfig(fused=True).build(fused))
    train(plain, AdamWConfig(fused=False).build(plain))
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_config_file_can_set_every_field():
    config = AdamWConfig.model_validate_json('{"name": "adamw", "lr": 1, "betas": [0.5, 0.75], "roles": {"up*": "head"}}')
    assert (config.lr, config.betas, config.roles) == (1.0, (0.5, 0.75), {"up*": "head"})


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (AdamWConfig, {"lr": 0.0}),
        (AdamWConfig, {"betas": (0.9, 1.0)}),
        (AdamWConfig, {"eps": 0.0}),
        (AdamWConfig, {"weight_decay": -0.1}),
        (AdamWConfig, {"decay": "none"}),
        (AdamWConfig, {"roles": {"up.weight": "matricks"}}),
        (SGDConfig, {"momentum": 1.0}),
        (SGDConfig, {"beta": 0.9}),
    ],
)
def test_values_out_of_range_are_refused(config, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        config(**wrong)


def test_nesterov_without_momentum_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="momentum=0 has none"):
        SGDConfig(momentum=0.0, nesterov=True)


def test_the_registry_knows_our_optimizers_and_its_default():
    assert optimizers.names() == ["adamw", "cosmos", "import", "muon", "sgd", "soap"]
    assert optimizers[optimizers.default] is AdamWConfig
