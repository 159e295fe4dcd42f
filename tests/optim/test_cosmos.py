"""COSMOS equals its slow reference, and keeps the invariances that its formulas have and no others; tolerances are measured."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrices import SEEDS, deviation, gaussian, matrices, of_rank, orthogonal, with_spectrum
from torch import nn

from disttrain.optim import COSMOS
from tests.reference.cosmos import ReferenceCosmos
from tests.reference.cosmos_loop import CosmosLoop
from tests.reference.newton_schulz import newton_schulz

few = settings(max_examples=20)
each_parity = pytest.mark.parametrize("parity", ["corrected", "reference"])
PLAIN = {"lr": 1.0, "lr_ratio": 1.0, "weight_decay": 0.0, "rank": 3, "ns_dtype": torch.float64}


class Run:
    """One matrix under COSMOS in fp64, from zero: ``step`` returns the update, ``state`` is the optimizer's."""

    def __init__(self, m, n, dtype=torch.float64, **overrides):
        self.weight = nn.Parameter(torch.zeros(m, n, dtype=dtype))
        hyper = {**PLAIN, **overrides}
        self.optimizer = COSMOS([self.weight], **{**hyper, "rank": min(hyper["rank"], m, n)})
        self.state = self.optimizer.state[self.weight]

    def step(self, gradient):
        with torch.no_grad():
            self.weight.zero_()
        self.weight.grad = gradient.to(self.weight.dtype).clone()
        self.optimizer.step()
        return -self.weight.detach().clone()


def stream(m, n, steps=4, seed=0):
    return [gaussian(m, n, seed=seed + 100 * step) for step in range(steps)]


def directions(gradients, **overrides):
    """The updates of a stream, each of root mean square 1."""
    run = Run(*gradients[0].shape, **overrides)
    return [run.step(G) for G in gradients]


def farthest(updates, others):
    return max(deviation(one, other) for one, other in zip(updates, others, strict=True))


@st.composite
def hypers(draw):
    """Settings, and the shape of a matrix."""
    m, n = draw(st.integers(2, 16)), draw(st.integers(2, 16))
    parity = draw(st.sampled_from(["corrected", "reference"]))
    # Where the basis spans all rows of the first gradient, the residual is round-off, which "reference" blows up.
    most = min(m, n) if parity == "corrected" else min(m, n) - 1
    betas = st.sampled_from([0.0, 0.5, 0.9, 0.95])
    return (m, n), {
        "lr": draw(st.sampled_from([1e-3, 0.1])),
        "lr_ratio": draw(st.sampled_from([0.2, 1.0])),
        "betas": (draw(betas), draw(betas.filter(bool))),
        "rank": draw(st.integers(1, most)),
        "gamma": draw(st.sampled_from([0.0, 0.2, 1.5])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "nesterov": draw(st.booleans()),
        "refresh_every": draw(st.integers(1, 3)),
        "gamma_scaling": draw(st.sampled_from(["fixed", "width"])),
        "project": draw(st.sampled_from(["in", "min"])),
        "parity": parity,
        "coefficients": draw(st.sampled_from(["jordan", "quintic", "polar_express", "deepseek"])),
    }


# --- against the reference ---------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(hypers(), SEEDS)
def test_it_is_the_reference(case, seed):
    (m, n), hyper = case
    weight = nn.Parameter(gaussian(m, n, seed=seed + 7))
    optimizer, reference = COSMOS([weight], ns_dtype=torch.float64, **hyper), ReferenceCosmos(weight.detach(), **hyper)
    for gradient in stream(m, n, 5, seed):
        before = weight.detach().clone()
        weight.grad = gradient
        optimizer.step(), reference.step(gradient)
        kept = 1 - hyper["lr"] * hyper["weight_decay"]
        assert deviation(weight.detach() - kept * before, reference.update) < 1e-6
    assert deviation(weight.detach(), reference.weight) < 1e-7
    state = optimizer.state[weight]
    momentum = state["momentum"].T if reference.transposed else state["momentum"]
    assert deviation(momentum, reference.momentum) < 1e-12
    assert deviation(state["second"], reference.second) < 1e-10
    signs = (state["basis"] * reference.basis).sum(0).sign()
    assert deviation(state["basis"] * signs, reference.basis) < 1e-10
    assert deviation(state["gram"] * signs * signs[:, None], reference.gram) < 1e-10


@each_parity
def test_in_single_precision_it_is_still_the_reference(parity):
    run = Run(24, 40, torch.float32, rank=8, parity=parity, ns_dtype=torch.float32)
    hyper = {key: value for key, value in PLAIN.items() if key != "ns_dtype"} | {"rank": 8, "parity": parity}
    reference = ReferenceCosmos(torch.zeros(24, 40), **hyper)
    for gradient in stream(24, 40, 6):
        reference.step(gradient)
        assert deviation(run.step(gradient), -reference.update) < 5e-4


def test_the_loop_that_speed_is_compared_with_is_the_reference():
    weight = nn.Parameter(gaussian(24, 16, dtype=torch.float32))
    hyper = {"lr": 0.1, "lr_ratio": 0.5, "rank": 4}
    loop = CosmosLoop([weight], ns_dtype=torch.float32, **hyper)
    reference = ReferenceCosmos(weight.detach(), parity="reference", **hyper)
    for gradient in stream(24, 16, 6):
        weight.grad = gradient.float()
        loop.step(), reference.step(gradient.float())
    assert deviation(weight.detach(), reference.weight) < 1e-3


# --- what the update is ------------------------------------------------------------------------------------------------


@each_parity
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@few
@given(first=matrices(), seed=SEEDS, rank=st.integers(1, 30))
def test_its_root_mean_square_is_lr_times_lr_ratio_for_any_gradient(dtype, parity, first, seed, rank):
    assume(first.any())
    run = Run(*first.shape, dtype, parity=parity, lr=0.5, lr_ratio=0.25, rank=rank)
    for gradient in (first, gaussian(*first.shape, seed=seed), first):
        rms = run.step(gradient).double().square().mean().sqrt()
        assert rms == pytest.approx(0.125, rel=1e-12 if dtype is torch.float64 else 1e-5)


@few
@given(st.integers(1, 5), SEEDS)
def test_without_gamma_it_stays_in_the_span_of_the_basis(rank, seed):
    run = Run(12, 10, gamma=0.0, rank=rank)
    for gradient in stream(12, 10, seed=seed):
        update, U = run.step(gradient), run.state["basis"]
        assert deviation(update @ U @ U.T, update) < 1e-12


@few
@given(st.integers(1, 5), SEEDS, st.booleans())
def test_with_a_great_gamma_it_is_muon_outside_the_basis(rank, seed, nesterov):
    run = Run(12, 10, gamma=1e9, rank=rank, nesterov=nesterov, betas=(0.9, 0.95))
    for t, gradient in enumerate(stream(12, 10, seed=seed), 1):
        update, U, M = run.step(gradient), run.state["basis"], run.state["momentum"]
        smoothed = (0.1 * gradient + 0.9 * M) / (1 - 0.9 ** (t + 1)) if nesterov else M / (1 - 0.9**t)
        outside = newton_schulz(smoothed - smoothed @ U @ U.T)
        assert deviation(update, outside / outside.square().mean().sqrt()) < 1e-6


@few
@given(SEEDS, st.sampled_from([(12, 6), (6, 6), (9, 7)]), st.sampled_from([0.0, 0.2]))
def test_of_full_rank_it_is_one_sided_soap(seed, shape, gamma):
    """The basis turned first, at every step, by one power iteration on the exact mean of GᵀG; no residual, whatever γ."""
    m, n = shape
    run = Run(m, n, rank=n, gamma=gamma, betas=(0.9, 0.8))
    factor, second, momentum, Q = torch.zeros(n, n), torch.zeros(m, n), torch.zeros(m, n), None
    for t, gradient in enumerate(stream(m, n, 5, seed), 1):
        update = run.step(gradient)
        factor = 0.8 * factor + 0.2 * gradient.T @ gradient
        Q = torch.linalg.eigh(factor).eigenvectors.flip(1) if t == 1 else torch.linalg.qr(factor @ Q).Q
        momentum = 0.9 * momentum + 0.1 * gradient
        second = 0.8 * second + 0.2 * (gradient @ Q) ** 2
        smoothed = (0.1 * gradient + 0.9 * momentum) / (1 - 0.9 ** (t + 1))
        soap = (smoothed @ Q / ((second / (1 - 0.8**t)).sqrt() + 1e-8)) @ Q.T
        assert deviation(update, soap / soap.square().mean().sqrt()) < 1e-9
        U, S = run.state["basis"], run.state["gram"]
        assert deviation(U @ S @ U.T, factor) < 1e-13


def share_outside_the_row_space(rank, seed, **overrides):
    """The most that an update of rank-4 COSMOS has outside the rows of gradients of ``rank``; dtypes as in training."""
    rows = torch.linalg.qr(gaussian(24, rank, seed=seed)).Q.T
    run = Run(32, 24, torch.float32, rank=4, ns_dtype=torch.bfloat16, **overrides)
    updates = [run.step(10 * gaussian(32, rank, seed=seed + 1 + step) @ rows).double() for step in range(4)]
    return max(deviation(update @ rows.T @ rows, update) for update in updates)


@few
@given(SEEDS)
def test_low_rank_gradients_are_not_answered_with_rounding_noise(seed):
    """In directions of the basis in which nothing happens, noise of 1e-7 meets a denominator of 1e-5."""
    assert share_outside_the_row_space(4, seed) < 1e-5
    assert share_outside_the_row_space(3, seed) < 0.1
    assert share_outside_the_row_space(1, seed) < 0.1


@pytest.mark.parametrize(("rank", "noise"), [(4, 0.3), (1, 0.8)])
def test_without_the_guards_they_are(rank, noise):
    assert share_outside_the_row_space(rank, 1, parity="reference") > noise


@pytest.mark.parametrize("shape", [(6, 8), (64, 48)])
@pytest.mark.parametrize("project", ["in", "min"])
def test_a_gradient_that_vanishes_leaves_the_momentum_to_go_on(shape, project):
    run = Run(*shape, torch.float32, project=project)
    zero = torch.zeros(shape)
    assert not run.step(zero).any()
    assert run.step(gaussian(*shape)).isfinite().all()
    for _ in range(3):
        assert run.step(zero).square().mean().sqrt() == pytest.approx(1.0, rel=1e-5)


# --- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@few
@given(data=st.data())
def test_the_basis_is_orthonormal_and_the_gram_a_gram_matrix_of_no_more_than_was_seen(dtype, most, data):
    shape = data.draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    run, seen = Run(*shape, dtype, betas=(0.9, 0.8), rank=data.draw(st.integers(1, 20))), 0.0
    for _ in range(3):
        gradient = data.draw(matrices(st.just(shape)))
        run.step(gradient)
        U, S = run.state["basis"].double(), run.state["gram"].double()
        seen = 0.8 * seen + 0.2 * float(gradient.square().sum())
        assert (U.T @ U - torch.eye(U.shape[1])).abs().max() < most
        assert torch.equal(S, S.T)
        assert torch.linalg.eigvalsh(S).min() >= -most * seen
        assert torch.trace(S) <= seen * (1 + most)


@few
@given(SEEDS)
def test_without_memory_the_statistics_are_those_of_the_last_gradient(seed):
    run = Run(9, 7, betas=(0.0, 0.0))
    for gradient in stream(9, 7, 3, seed):
        run.step(gradient)
        U = run.state["basis"]
        assert torch.equal(run.state["momentum"], gradient)
        assert deviation(run.state["gram"], (gradient @ U).T @ (gradient @ U)) < 1e-14
        assert deviation(run.state["second"], (gradient @ U).square()) < 1e-14


@few
@given(SEEDS, st.integers(2, 4))
def test_between_turns_the_basis_rests_and_its_statistics_do_not(seed, refresh_every):
    run, turned = Run(9, 7, refresh_every=refresh_every), []
    for gradient in stream(9, 7, 2 * refresh_every + 1, seed):
        basis, gram = run.state["basis"].clone(), run.state["gram"].clone()
        run.step(gradient)
        turned.append(not torch.equal(run.state["basis"], basis))
        assert not torch.equal(run.state["gram"], gram)
    assert turned == [step % refresh_every == 0 for step in range(2 * refresh_every + 1)]


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_counts(nesterov):
    """In the public code it does not, without nesterov."""
    run, disturbed = Run(9, 7, nesterov=nesterov), Run(9, 7, nesterov=nesterov)
    first, second = stream(9, 7, 2)
    run.step(first), disturbed.step(first)
    disturbed.state["momentum"].add_(gaussian(9, 7, seed=5))
    assert deviation(disturbed.step(second), run.step(second)) > 0.1


@few
@given(SEEDS, st.lists(st.sampled_from([-1.0, 1.0]), min_size=3, max_size=3))
def test_signs_of_the_basis_change_nothing(seed, signs):
    flips = torch.tensor(signs, dtype=torch.float64)
    run, flipped = Run(9, 7), Run(9, 7)
    first, *rest = stream(9, 7, 4, seed)
    run.step(first), flipped.step(first)
    flipped.state["basis"].mul_(flips)
    flipped.state["gram"].mul_(flips).mul_(flips[:, None])
    for gradient in rest:
        assert torch.equal(flipped.step(gradient), run.step(gradient))


# --- invariances -------------------------------------------------------------------------------------------------------


@each_parity
@few
@given(SEEDS)
def test_negation_is_exact(parity, seed):
    gradients = stream(9, 7, seed=seed)
    pairs = zip(directions([-G for G in gradients], parity=parity), directions(gradients, parity=parity), strict=True)
    assert all(torch.equal(one, -other) for one, other in pairs)


@few
@given(SEEDS, st.floats(0, 6))
def test_a_greater_scale_of_all_gradients_hardly_matters(seed, exponent):
    gradients = stream(9, 7, seed=seed)
    scaled = directions([10.0**exponent * G for G in gradients])
    assert farthest(scaled, directions(gradients)) < 1e-4  # what eps = 1e-8 does to entries near 0


@few
@given(SEEDS, st.integers(-40, 60))
def test_without_eps_a_power_of_two_changes_no_bit(seed, k):
    gradients = stream(9, 7, seed=seed)
    scaled, plain = (directions([c * G for G in gradients], eps=1e-300) for c in (2.0**k, 1.0))
    assert all(map(torch.equal, scaled, plain))


@each_parity
@few
@given(SEEDS)
def test_it_turns_with_the_inputs(parity, seed):
    """G → GR. The sketched first basis is not exact: the corrected start turns along only where there is a gap behind r."""
    R = orthogonal(7, seed)
    spectrum = [100.0, 60.0, 30.0, 0.3, 0.2, 0.1, 0.05] if parity == "corrected" else [7.0, 6, 5, 4, 3, 2, 1]
    gradients = [with_spectrum(9, 7, spectrum, seed), *stream(9, 7, seed=seed)]
    turned = directions([G @ R for G in gradients], parity=parity)
    assert farthest(turned, [update @ R for update in directions(gradients, parity=parity)]) < 1e-9


@each_parity
@few
@given(SEEDS)
def test_signed_permutations_of_the_outputs_go_through(parity, seed):
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    signs = gaussian(9, 1, seed=seed).sign()
    gradients = stream(9, 7, seed=seed)
    moved = directions([signs * G[order] for G in gradients], parity=parity)
    assert farthest(moved, [signs * update[order] for update in directions(gradients, parity=parity)]) < 1e-10


@each_parity
@few
@given(SEEDS)
def test_rotations_of_the_outputs_do_not(parity, seed):
    """Adam's quotient is taken row by row: an implementation for which this held would not be COSMOS."""
    L, gradients = orthogonal(9, seed), stream(9, 7, seed=seed)
    turned = directions([L @ G for G in gradients], parity=parity)
    assert farthest(turned, [L @ update for update in directions(gradients, parity=parity)]) > 0.2


@few
@given(SEEDS, st.integers(2, 8), st.integers(1, 8))
def test_projecting_the_smaller_side_is_the_same_on_the_transpose(seed, m, more):
    gradients = stream(m, m + more, seed=seed)
    upright = directions([G.T for G in gradients], project="in")
    assert farthest(directions(gradients, project="min"), [update.T for update in upright]) < 1e-12
    assert farthest(directions([G.T for G in gradients], project="min"), upright) < 1e-12


def test_gamma_scaled_by_width_is_gamma_times_the_root_of_rank_over_width():
    gradients = stream(9, 12)
    assert farthest(directions(gradients, gamma=0.4, gamma_scaling="width"), directions(gradients, gamma=0.2)) < 1e-14
    assert farthest(directions(gradients, gamma=0.4), directions(gradients, gamma=0.2)) > 0.01


def test_the_first_basis_is_good_enough_for_a_low_rank_gradient():
    G = of_rank(12, 10, 3)
    run = Run(12, 10, gamma=0.0)
    run.step(G)
    U = run.state["basis"]
    assert deviation(G @ U @ U.T, G) < 1e-12
    assert math.isclose(torch.trace(run.state["gram"]).item(), 0.05 * G.square().sum().item(), rel_tol=1e-12)
