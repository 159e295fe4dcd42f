"""Muon by config is torch's Muon on the matrices, but for the rounding of Newton–Schulz, and torch's AdamW on the rest."""

import pytest
import torch
from small_modules import same_parameters, split, train, twins
from torch import nn

from disttrain.optim import AdamWConfig, MuonConfig, table
from disttrain.optim.newton_schulz import newton_schulz


def by_hand(module, *, lr, adamw_lr, **muon):
    matrices, rest = split(module, "matrix")
    decaying = [each for each in rest if each.ndim == 3]
    spared = [each for each in rest if each.ndim != 3]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.Muon(matrices, lr=lr, **muon), torch.optim.AdamW(groups, lr=adamw_lr, betas=(0.9, 0.95))


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_torchs_muon_and_torchs_adamw_bitwise_around_newton_schulz(adjust, nesterov, monkeypatch):
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", lambda grad, *_: newton_schulz(grad))
    ours, theirs = twins()
    settings = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.2}
    config = MuonConfig(lr=8e-3, adamw_lr=4e-3, adjust=adjust, **settings)
    parts = by_hand(theirs, lr=8e-3, adamw_lr=4e-3, adjust_lr_fn=adjust, **settings)
    assert same_parameters(train(ours, config.build(ours)), train(theirs, *parts))


def test_newton_schulz_is_torchs_but_for_rounding():
    x = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    theirs = torch.optim._muon._zeropower_via_newtonschulz(x, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    assert torch.allclose(newton_schulz(x).float(), theirs.float(), atol=2e-2)


def test_the_rest_takes_all_of_the_adamw_settings():
    ours, theirs = twins()
    ours.up.requires_grad_(False), theirs.up.requires_grad_(False)
    rest = {"lr": 0.01, "betas": (0.7, 0.8), "eps": 1e-4, "weight_decay": 0.5, "decay": "all"}
    config = MuonConfig(**{f"adamw_{key}": value for key, value in rest.items()})
    train(ours, config.build(ours), steps=range(1))
    train(theirs, AdamWConfig(**rest).build(theirs), steps=range(1))
    assert same_parameters(ours.norm, theirs.norm)
    assert same_parameters(ours.head, theirs.head)
    assert not same_parameters(ours.down, theirs.down)


def test_every_role_is_stepped_by_its_algorithm():
    module, _ = twins()
    optimizer = MuonConfig().build(module)
    assert [(group["role"], group["algorithm"]) for group in optimizer.param_groups] == [
        ("matrix", "muon"), ("embedding", "adamw"), ("norm", "adamw"), ("bias", "adamw"), ("conv", "adamw"),
    ]  # fmt: skip


def test_a_module_of_matrices_alone_needs_no_adamw():
    (group,) = MuonConfig().build(nn.Linear(3, 3, bias=False)).param_groups
    assert group["algorithm"] == "muon"


def test_a_module_without_matrices_is_told_to_use_adamw():
    with pytest.raises(ValueError, match=r"LayerNorm has no weight matrix .* optimizer\.name=adamw"):
        MuonConfig().build(nn.LayerNorm(3))


def test_the_table_shows_who_moves_what():
    module, _ = twins()
    rows = table(MuonConfig(lr=8e-3, adamw_lr=4e-3).build(module))
    assert [tuple(row) for row in rows] == [
        ("matrix", "Muon", 2, 156, 8e-3, 0.1),
        ("embedding", "AdamW", 2, 102, 4e-3, 0.0),
        ("norm", "AdamW", 2, 12, 4e-3, 0.0),
        ("bias", "AdamW", 5, 39, 4e-3, 0.0),
        ("conv", "AdamW", 1, 108, 4e-3, 0.1),
    ]
    assert sum(row.parameters for row in rows) == sum(each.numel() for each in module.parameters())


def test_the_table_of_a_single_optimizer_names_that():
    module, _ = twins()
    assert {row.optimizer for row in table(AdamWConfig().build(module))} == {"AdamW"}
    assert [row.group for row in table(torch.optim.SGD(module.parameters()))] == ["all"]
