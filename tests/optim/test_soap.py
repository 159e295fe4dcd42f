"""SOAP equals its slow reference and, in the cases in which it has to, torch's Adam; tolerances are measured."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import SEEDS, deviation, gaussian, matrices, orthogonal
from torch import nn

from disttrain.optim import SOAP
from disttrain.optim.soap import eigenvectors, into, out_of, turn
from tests.reference.soap import ReferenceSOAP

few = settings(max_examples=20)


def trained(gradients, start=None, **hyper):
    """The weight after each gradient, and the state after the last; from zero unless ``start`` is given."""
    weight = nn.Parameter((torch.zeros_like(gradients[0]) if start is None else start).clone())
    optimizer, weights = SOAP([weight], **hyper), []
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        weights.append(weight.detach().clone())
    return weights, optimizer.state[weight]


def stream(m, n, steps=6, seed=0):
    return [gaussian(m, n, seed=seed + 100 * step) for step in range(steps)]


def farthest(weights, others):
    return max(deviation(one, other) for one, other in zip(weights, others, strict=True))


# --- against the reference ---------------------------------------------------------------------------------------------


@st.composite
def hypers(draw):
    """Settings, and a shape."""
    m = draw(st.integers(2, 12))
    n = draw(st.integers(2, 12))
    return (m, n), {
        "lr": draw(st.sampled_from([3e-3, 0.1])),
        "betas": (draw(st.sampled_from([0.0, 0.5, 0.95])), draw(st.sampled_from([0.5, 0.95]))),
        "eps": draw(st.sampled_from([1e-8, 1e-3])),
        "weight_decay": draw(st.sampled_from([0.0, 0.5])),
        "frequency": draw(st.integers(1, 4)),
        "max_size": draw(st.sampled_from([min(m, n), max(m, n), 1])),
    }


@settings(max_examples=60)
@given(hypers(), SEEDS)
def test_it_is_the_reference(case, seed):
    (m, n), hyper = case
    if m != n and hyper["max_size"] == max(m, n):
        m = n = min(m, n)  # the first gradient of a wide matrix leaves the greater factor's null space open
    start, gradients = gaussian(m, n, seed=seed + 7), stream(m, n, 8, seed)
    weights, state = trained(gradients, start, **hyper)
    reference = ReferenceSOAP(start, **hyper)
    for gradient, weight in zip(gradients, weights, strict=True):
        reference.step(gradient)
        assert deviation(weight, reference.weight) < 1e-10
    for name, side, basis in (("left", m, reference.basis_left), ("right", n, reference.basis_right)):
        assert (name in state) == (side <= hyper["max_size"])
        if name in state:
            assert deviation(state[name], getattr(reference, name)) < 1e-12
            assert ((state[f"{name}_basis"] * basis).sum(0).abs() - 1).abs().max() < 1e-9
    assert deviation(state["momentum"].abs(), reference.exp_avg.abs()) < 1e-7
    assert deviation(state["second"], reference.exp_avg_sq) < 1e-7


def test_in_single_precision_it_is_still_the_reference():
    start, gradients = gaussian(12, 12, seed=7), stream(12, 12, 8)
    weights, _ = trained([G.float() for G in gradients], start.float(), frequency=2)
    reference = ReferenceSOAP(start.float(), frequency=2)
    for gradient in gradients:
        reference.step(gradient.float())
    assert deviation(weights[-1] - start.float(), reference.weight - start.float().double()) < 1e-3


def test_the_first_gradient_starts_the_bases_and_moves_nothing():
    first, second = stream(6, 6, 2)
    start = gaussian(6, 6, seed=3)
    weights, state = trained([first], weight_decay=0.5, start=start)
    assert torch.equal(weights[0], start)
    assert not state["momentum"].any()
    assert not state["second"].any()
    weights, _ = trained([first, second], weight_decay=0.0, lr=0.1, eps=1e-30)
    # √(1 − β₂)/(1 − β₁) times (1 − β₁)G'/√((1 − β₂)G'²): the first update is Q_L sign(G') Q_Rᵀ, as Adam's is sign(G)
    bases = eigenvectors(first @ first.T), eigenvectors(first.T @ first)
    assert deviation(into(weights[1], bases), -0.1 * into(second, bases).sign()) < 1e-12


# --- degenerate cases --------------------------------------------------------------------------------------------------


@few
@given(SEEDS, st.tuples(st.integers(2, 9), st.integers(2, 9)))
def test_without_bases_it_is_torchs_adam_a_gradient_late(seed, shape):
    gradients = stream(*shape, seed=seed)
    hyper = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-30}  # eps is added before the bias is corrected, unlike Adam's
    weights, state = trained(gradients, weight_decay=0.0, max_size=1, **hyper)
    assert set(state) == {"step", "momentum", "second"}
    weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    adam = torch.optim.Adam([weight], **hyper)
    for gradient, ours in zip(gradients[1:], weights[1:], strict=True):
        weight.grad = gradient
        adam.step()
        assert deviation(ours, weight.detach()) < 1e-13


@few
@given(SEEDS, st.integers(1, 3))
def test_with_gradients_of_fixed_singular_vectors_it_is_adam_on_the_singular_values(seed, frequency):
    L, R = orthogonal(6, seed), orthogonal(6, seed + 1)
    order = torch.tensor([6.0, 5, 4, 3, 2, 1], dtype=torch.float64)
    diagonals = [torch.diag(order + 0.3 * gaussian(6, seed=seed + 10 + step).clamp(-1, 1)) for step in range(6)]
    hyper = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-12}
    weights, _ = trained([L @ D @ R.T for D in diagonals], weight_decay=0.0, frequency=frequency, **hyper)
    D = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    adam = torch.optim.Adam([D], **hyper)
    for diagonal, weight in zip(diagonals[1:], weights[1:], strict=True):
        D.grad = diagonal.diagonal()
        adam.step()
        moved = (L.T @ weight @ R).diagonal()
        assert deviation(moved, D.detach()) < 1e-9


# --- invariances -------------------------------------------------------------------------------------------------------


@few
@given(SEEDS, st.integers(2, 8))
def test_it_turns_with_inputs_and_outputs(seed, size):
    """Square gradients of full rank: else the null space of the first factor is open."""
    L, R, gradients = orthogonal(size, seed), orthogonal(size, seed + 1), stream(size, size, seed=seed)
    turned, _ = trained([L @ G @ R for G in gradients], frequency=1, weight_decay=0.0)
    weights, _ = trained(gradients, frequency=1, weight_decay=0.0)
    assert farthest(turned[1:], [L @ weight @ R for weight in weights[1:]]) < 1e-9


@few
@given(SEEDS, st.integers(6, 8))
def test_without_bases_it_does_not_turn(seed, size):
    L, gradients = orthogonal(size, seed), stream(size, size, seed=seed)
    turned, _ = trained([L @ G for G in gradients], max_size=1, weight_decay=0.0)
    weights, _ = trained(gradients, max_size=1, weight_decay=0.0)
    assert farthest(turned[1:], [L @ weight for weight in weights[1:]]) > 0.05


@few
@given(SEEDS, st.integers(2, 6))
def test_the_transpose_goes_to_the_transpose(seed, size):
    gradients = stream(size, size, seed=seed)
    upright, _ = trained(gradients, frequency=2)
    lying, _ = trained([G.T for G in gradients], frequency=2)
    assert farthest(lying[1:], [weight.T for weight in upright[1:]]) < 1e-10


# --- bases -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@few
@given(data=st.data())
def test_bases_stay_orthogonal_whatever_comes(dtype, most, data):
    shape = data.draw(st.tuples(st.integers(1, 10), st.integers(1, 10)))
    gradients = [data.draw(matrices(st.just(shape))).to(dtype) for _ in range(4)]
    weights, state = trained(gradients, frequency=1)
    for basis in (state["left_basis"].double(), state["right_basis"].double()):
        assert (basis.T @ basis - torch.eye(len(basis))).abs().max() < most
    assert weights[-1].isfinite().all()


@few
@given(SEEDS, st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_into_the_bases_and_out_again_is_where_one_was(seed, shape):
    x, bases = gaussian(*shape, seed=seed), (orthogonal(shape[0], seed), orthogonal(shape[1], seed + 1))
    for some in (bases, (bases[0], None), (None, bases[1])):
        assert deviation(out_of(into(x, some), some), x) < 1e-13
    assert into(x, (None, None)) is x


def state_of(m, n, seed):
    """Of a stack of two, its bases being the eigenvectors of the factors, in the wrong order."""
    grams = [gaussian(2, size, size, seed=seed + size) for size in (m, n)]
    left, right = (gram @ gram.mT for gram in grams)
    orders = torch.randperm(m, generator=torch.Generator().manual_seed(seed)), torch.arange(n).roll(1)
    return {
        "momentum": gaussian(2, m, n, seed=seed),
        "second": gaussian(2, m, n, seed=seed + 1).square(),
        "left": left,
        "right": right,
        "left_basis": eigenvectors(left)[..., orders[0]],
        "right_basis": eigenvectors(right)[..., orders[1]],
    }, orders


@few
@given(SEEDS, st.tuples(st.integers(2, 8), st.integers(2, 8)))
def test_a_turn_leaves_the_momentum_where_it_was_outside_the_bases(seed, shape):
    state, _ = state_of(*shape, seed)
    state["left_basis"] = torch.linalg.qr(gaussian(2, shape[0], shape[0], seed=seed + 5)).Q
    new = turn(state)
    was = out_of(state["momentum"], (state["left_basis"], state["right_basis"]))
    assert deviation(out_of(new["momentum"], (new["left_basis"], new["right_basis"])), was) < 1e-13
    assert deviation(new["momentum"].norm(dim=(-2, -1)), state["momentum"].norm(dim=(-2, -1))) < 1e-13


@few
@given(SEEDS, st.tuples(st.integers(2, 8), st.integers(2, 8)))
def test_the_second_moment_is_sorted_as_the_columns_of_the_bases_are(seed, shape):
    """Eigenvectors in the wrong order: a turn puts them right, up to signs, and takes rows and columns of v' along."""
    state, (rows, columns) = state_of(*shape, seed)
    new = turn(state)
    assert torch.equal(new["second"], state["second"][:, rows.argsort()][:, :, columns.argsort()])
    same = (new["left_basis"] * eigenvectors(state["left"])).sum(-2).abs()
    assert (same - 1).abs().max() < 1e-6


def test_bases_turn_every_so_many_updates():
    gradients, turned = stream(5, 5, 8), []
    weight = nn.Parameter(torch.zeros(5, 5))
    optimizer = SOAP([weight], frequency=3)
    for gradient in gradients:
        before = optimizer.state[weight]["left_basis"].clone()
        weight.grad = gradient.float()
        optimizer.step()
        turned.append(not torch.equal(optimizer.state[weight]["left_basis"], before))
    assert turned == [True, False, False, True, False, False, True, False]


def test_a_side_that_is_too_long_has_no_factor():
    _, state = trained(stream(4, 6), max_size=5)
    assert set(state) == {"step", "momentum", "second", "left", "left_basis"}
