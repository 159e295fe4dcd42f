"""A basis is orthonormal, spans what Householder's QR spans, and finds the leading singular vectors; tolerances are measured."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import SEEDS, deviation, gaussian, of_rank, power_law, with_spectrum

from disttrain.optim.subspace import cholesky_qr2, initial_basis, leading_singular_vectors, orthonormalise
from tests.reference.cosmos import sketched_basis

few = settings(max_examples=30)
ORTHONORMAL = {torch.float64: 1e-12, torch.float32: 5e-6}


def non_orthonormality(Q):
    """Greatest entry of QᵀQ − I over a stack."""
    Q = Q.double()
    return (Q.mT @ Q - torch.eye(Q.shape[-1])).abs().max()


def projector(Q):
    return Q.double() @ Q.double().mT


@st.composite
def tall(draw, dependent=True):
    """[n, r], r ≤ n: well or badly conditioned, of low rank, with dead columns, zero; columns of any scale."""
    r, seed = draw(st.integers(1, 12)), draw(SEEDS)
    n = r + draw(st.integers(0, 12))
    kinds = ["gaussian", "steep"] + (["low rank", "dead", "zero"] if dependent else [])
    kind = draw(st.sampled_from(kinds))
    p = {
        "gaussian": lambda: gaussian(n, r, seed=seed),
        "steep": lambda: gaussian(n, r, seed=seed) * torch.arange(1, r + 1, dtype=torch.float64) ** -5.0,
        "low rank": lambda: of_rank(n, r, max(1, r // 2), seed),
        "dead": lambda: gaussian(n, r, seed=seed) * (torch.arange(r) % 2),
        "zero": lambda: torch.zeros(n, r, dtype=torch.float64),
    }[kind]()
    return p * 10.0 ** draw(st.integers(-6, 6))


@pytest.mark.parametrize("dtype", list(ORTHONORMAL))
@few
@given(p=tall())
def test_columns_come_out_orthonormal_whatever_they_were(dtype, p):
    Q = cholesky_qr2(p.to(dtype))
    assert Q.dtype is dtype
    assert Q.shape == p.shape
    assert non_orthonormality(Q) < ORTHONORMAL[dtype]


@few
@given(tall(dependent=False))
def test_independent_columns_keep_their_span_one_after_the_other(p):
    Q, householder = cholesky_qr2(p), torch.linalg.qr(p).Q
    same = (Q * householder).sum(0).abs()  # Q is unique up to signs
    assert (same - 1).abs().max() < 1e-8


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@few
@given(p=tall())
def test_every_column_is_in_the_span(dtype, most, p):
    p = p.to(dtype)
    Q, wide = cholesky_qr2(p).double(), p.double()
    assert ((wide - Q @ (Q.mT @ wide)).norm(dim=0) <= most * wide.norm(dim=0)).all()


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
def test_the_spectra_of_gradients_need_no_householder(exponent, monkeypatch):
    G = power_law(40, 30, exponent, seed=2).float()
    P = G.mT @ (G @ leading_singular_vectors(G, 12))  # columns of lengths σ²
    monkeypatch.setattr(torch.linalg, "qr", None)
    assert non_orthonormality(cholesky_qr2(P)) < ORTHONORMAL[torch.float32]


@pytest.mark.parametrize("dtype", list(ORTHONORMAL))
@few
@given(seed=SEEDS, leading=st.sampled_from([(1,), (3,), (2, 2)]))
def test_a_matrix_comes_out_the_same_in_a_stack_of_one_and_of_many(dtype, seed, leading):
    p = gaussian(*leading, 9, 4, seed=seed, dtype=dtype)
    together = cholesky_qr2(p).flatten(0, -3)
    assert torch.equal(together, torch.cat([cholesky_qr2(each[None]) for each in p.flatten(0, -3)]))


@pytest.mark.parametrize("bad", ["zero", "dependent"])
def test_a_matrix_beside_one_with_dependent_columns_comes_out_the_same(bad):
    good = gaussian(9, 4, seed=1)
    other = torch.zeros_like(good) if bad == "zero" else good[:, [0, 0, 1, 2]]
    Q = cholesky_qr2(torch.stack([good, other]))
    assert non_orthonormality(Q) < 1e-12
    assert torch.equal(Q[:1], cholesky_qr2(good[None]))


def test_a_nan_stays_in_its_matrix():
    p = gaussian(2, 9, 4)
    p[1, 3, 2] = torch.nan
    Q = cholesky_qr2(p)
    assert torch.equal(Q[:1], cholesky_qr2(p[:1]))
    assert not Q[1].isfinite().all()


@pytest.mark.parametrize("dtype", list(ORTHONORMAL))
@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
def test_the_first_basis_is_that_of_the_reference(dtype, shape):
    G = power_law(*shape, 0.5, seed=3)
    ours, theirs = initial_basis(G.to(dtype), 4).double(), sketched_basis(G, 4)
    signs = (ours * theirs).sum(0).sign()
    assert non_orthonormality(ours) < ORTHONORMAL[dtype]
    assert deviation(ours * signs, theirs) < (1e-12 if dtype is torch.float64 else 1e-4)


@few
@given(SEEDS, st.floats(1.2, 10.0))
def test_the_first_basis_closes_in_on_the_leading_singular_vectors_as_power_iterations_must(seed, gap):
    """tan θ after four products with GᵀG is at most gap⁻⁸ times tan θ of the start; ‖P − P₁‖ = √2‖sin θ‖, ‖P₁‖ = 2."""
    G = with_spectrum(16, 12, [gap * (1 + i / 8) for i in range(4)][::-1] + [1.0] * 8, seed)
    start = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right = torch.linalg.svd(G).Vh
    tangent = (right[4:] @ start) @ torch.linalg.inv(right[:4] @ start)
    bound = tangent.norm() * gap**-8 / 2**0.5
    assert deviation(projector(initial_basis(G, 4)), projector(leading_singular_vectors(G, 4))) < bound + 1e-12


@few
@given(SEEDS)
def test_the_first_basis_is_sorted_by_falling_singular_value(seed):
    lengths = (gaussian(10, 8, seed=seed) @ initial_basis(gaussian(10, 8, seed=seed), 5)).norm(dim=0)
    assert (lengths.diff() <= 1e-12).all()


@pytest.mark.parametrize("start", [initial_basis, leading_singular_vectors])
@pytest.mark.parametrize(("m", "n", "rank"), [(3, 8, 3), (8, 3, 3), (5, 5, 1), (2, 9, 4)])
def test_a_basis_holds_no_more_memory_than_it_shows(start, m, n, rank):
    basis = start(gaussian(2, m, n, dtype=torch.float32), rank)
    assert basis.shape == (2, n, rank)
    assert basis.untyped_storage().nbytes() == 2 * n * rank * 4
    assert non_orthonormality(basis) < ORTHONORMAL[torch.float32]


@few
@given(SEEDS)
def test_leading_singular_vectors_are_those_of_the_decomposition(seed):
    G = gaussian(7, 10, seed=seed)
    vectors = torch.linalg.eigh(G.mT @ G).eigenvectors.flip(1)[:, :4]
    same = (leading_singular_vectors(G, 4) * vectors).sum(0).abs()
    assert (same - 1).abs().max() < 1e-9


@pytest.mark.parametrize("start", [initial_basis, leading_singular_vectors])
def test_a_stack_starts_as_its_matrices_do(start):
    G = gaussian(3, 8, 6, seed=5)
    assert deviation(start(G, 3), torch.stack([start(each, 3) for each in G])) < 1e-12


def test_the_global_random_stream_is_left_alone():
    state = torch.get_rng_state()
    initial_basis(gaussian(4, 4), 2)
    assert torch.equal(torch.get_rng_state(), state)


@given(SEEDS)
def test_on_a_cpu_it_is_householders(seed):
    p = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(orthonormalise(p), torch.linalg.qr(p).Q)
