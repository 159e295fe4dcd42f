"""Matrices as optimizers meet them: any shape, steep spectra, low rank, dead rows, gradients of any scale."""

import torch
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32)
SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthogonal(size, seed=0):
    """A random orthogonal matrix [size, size]."""
    return torch.linalg.qr(gaussian(size, size, seed=seed)).Q


def with_spectrum(m, n, sigma, seed=0):
    """[m, n] with random singular vectors and singular values ``sigma``, as many as the smaller side."""
    left, _, right = torch.linalg.svd(gaussian(m, n, seed=seed), full_matrices=False)
    return left @ torch.diag(torch.as_tensor(sigma, dtype=torch.float64)) @ right


def of_rank(m, n, rank, seed=0):
    return gaussian(m, rank, seed=seed) @ gaussian(rank, n, seed=seed + 1)


def power_law(m, n, exponent, seed=0):
    """Singular values i^−exponent."""
    return with_spectrum(m, n, torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -exponent, seed)


@st.composite
def conditioned(draw, shapes=SHAPES, least=3e-3):
    """A matrix [m, n] no singular value of which is below ``least`` times its Frobenius norm, of any scale."""
    m, n = draw(shapes)
    k = min(m, n)
    lowest = least * k**0.5  # the norm is at most √k times the greatest singular value, which is 1
    sigma = [1.0] + [draw(st.floats(min(lowest, 1.0), 1.0)) for _ in range(k - 1)]
    return with_spectrum(m, n, sigma, draw(SEEDS)) * 10.0 ** draw(st.integers(-6, 6))


@st.composite
def matrices(draw, shapes=SHAPES):
    """A matrix [m, n], fp64: Gaussian, steep, of low rank, with dead rows and columns, zero, or a transposed view."""
    (m, n), seed = draw(shapes), draw(SEEDS)
    kind = draw(st.sampled_from(["gaussian", "steep", "low rank", "dead", "zero", "view"]))
    if kind == "gaussian":
        x = gaussian(m, n, seed=seed)
    elif kind == "steep":
        x = power_law(m, n, draw(st.sampled_from([1.0, 1.5, 2.0])), seed)
    elif kind == "low rank":
        x = of_rank(m, n, draw(st.integers(1, min(m, n))), seed)
    elif kind == "dead":
        x = gaussian(m, n, seed=seed)
        x[:: draw(st.integers(2, 3))] = 0
        x[:, :: draw(st.integers(2, 3))] = 0
    elif kind == "zero":
        x = torch.zeros(m, n, dtype=torch.float64)
    else:
        x = gaussian(2 * n, m, seed=seed)[::2].T
    return x * 10.0 ** draw(st.integers(-6, 6))


def deviation(one, other):
    """‖one − other‖ / ‖other‖; the plain distance if ``other`` is zero."""
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm()) / (float(other.norm()) or 1.0)
