"""Muon by config is torch's Muon on the matrices, but for the rounding of Newton–Schulz, and torch's AdamW on the rest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import SEEDS, conditioned, deviation, gaussian, orthogonal
from small_modules import same_parameters, split, train, twins
from torch import nn

from disttrain.optim import AdamWConfig, Muon, MuonConfig, table
from disttrain.optim.newton_schulz import newton_schulz
from tests.reference.muon import ReferenceMuon
from tests.reference.muon import scale as reference_scale

few = settings(max_examples=20)


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


# --- the optimizer itself ----------------------------------------------------------------------------------------------


def stepped(gradients, start=None, **hyper):
    """The weight after each gradient; in fp64 throughout, unless said otherwise, and from zero unless ``start`` is given."""
    weight = nn.Parameter((torch.zeros_like(gradients[0]) if start is None else start).clone())
    optimizer, weights = Muon([weight], **{"ns_dtype": torch.float64, **hyper}), []
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        weights.append(weight.detach().clone())
    return weights


def stream(m, n, steps=4, seed=0):
    return [gaussian(m, n, seed=seed + 100 * step) for step in range(steps)]


@settings(max_examples=50)
@given(
    st.tuples(st.integers(1, 16), st.integers(1, 16)),
    SEEDS,
    st.fixed_dictionaries(
        {
            "lr": st.sampled_from([0.02, 0.5]),
            "momentum": st.sampled_from([0.0, 0.9, 0.95]),
            "nesterov": st.booleans(),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "adjust": st.sampled_from(["original", "match_rms_adamw"]),
            "coefficients": st.sampled_from(["jordan", "quintic", "polar_express", "deepseek"]),
        }
    ),
)
def test_muon_is_the_reference(shape, seed, hyper):
    start, gradients = gaussian(*shape, seed=seed + 7), stream(*shape, seed=seed)
    reference = ReferenceMuon(start, **hyper)
    for gradient, weight in zip(gradients, stepped(gradients, start, **hyper), strict=True):
        reference.step(gradient)
        assert deviation(weight, reference.weight) < 1e-10


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_on_one_matrix_it_is_torchs_but_for_the_rounding_of_bfloat16(shape, adjust, nesterov):
    ours, theirs = (nn.Parameter(gaussian(*shape, dtype=torch.float32)) for _ in range(2))
    muon = Muon([ours], lr=0.1, nesterov=nesterov, adjust=adjust)
    torchs = torch.optim.Muon([theirs], lr=0.1, nesterov=nesterov, adjust_lr_fn=adjust)
    start = ours.detach().clone()
    for gradient in stream(*shape, 5):
        ours.grad = theirs.grad = gradient.float()
        muon.step(), torchs.step()
    assert deviation(ours - start, theirs - start) < 0.02


@pytest.mark.parametrize("nesterov", [False, True])
def test_bfloat16_parameters_keep_their_momentum(nesterov):
    """With nesterov=False torch 2.13 overwrites it (PyTorch #194664)."""
    weight, momentum = nn.Parameter(gaussian(6, 8).bfloat16()), torch.zeros(6, 8)
    muon = Muon([weight], nesterov=nesterov)
    for gradient in stream(6, 8):
        weight.grad = gradient.bfloat16()
        muon.step()
        momentum = 0.95 * momentum + 0.05 * weight.grad.float()
    assert deviation(muon.state[weight]["momentum"], momentum) < 1e-6


@few
@given(SEEDS, st.tuples(st.integers(2, 12), st.integers(2, 12)), st.floats(-6, 6))
def test_the_scale_of_all_gradients_does_not_matter(seed, shape, exponent):
    gradients = stream(*shape, seed=seed)
    scaled = stepped([10.0**exponent * G for G in gradients])
    assert deviation(scaled[-1], stepped(gradients)[-1]) < 1e-9


@few
@given(SEEDS, st.tuples(st.integers(2, 12), st.integers(2, 12)))
def test_muon_turns_with_inputs_and_outputs(seed, shape):
    L, R, gradients = orthogonal(shape[0], seed), orthogonal(shape[1], seed + 1), stream(*shape, seed=seed)
    turned = stepped([L @ G @ R for G in gradients])
    assert deviation(turned[-1], L @ stepped(gradients)[-1] @ R) < 1e-10


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@few
@given(G=conditioned(shapes=st.tuples(st.integers(1, 24), st.integers(1, 24))))
def test_the_root_mean_square_of_an_update_is_the_scale_over_the_root_of_the_greater_side(adjust, G):
    (update,) = stepped([G], lr=1.0, weight_decay=0.0, adjust=adjust)
    m, n = G.shape
    assert 0.68 <= update.square().mean().sqrt() * max(m, n) ** 0.5 / reference_scale(m, n, adjust) <= 1.2025
    if adjust == "match_rms_adamw":
        assert 0.136 <= update.square().mean().sqrt() <= 0.2405
