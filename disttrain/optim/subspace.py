"""The leading right singular vectors of a stream of gradients, as an orthonormal basis that is refreshed rather than recomputed.

All functions take stacks: any number of leading axes, the matrices in the last two.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 4
"""Of subspace iteration for a first basis; see docs/lab_notebook.md for what they take."""


def initial_basis(g: Tensor, rank: int) -> Tensor:
    """About the ``rank`` leading right singular vectors of ``g``, by subspace iteration from a fixed start, then Rayleigh–Ritz.

    Args:
        g: ``[..., m, n]``.
        rank: r ≤ n.

    Returns:
        ``[..., n, r]``, orthonormal columns, by descending singular value; never a view of anything larger.
    """
    start = torch.randn(g.shape[-1], rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = orthonormalise(start.to(g)).expand(*g.shape[:-2], -1, -1)
    for _ in range(ROUNDS):
        basis = orthonormalise(g.mT @ (g @ basis))
    projected = g @ basis
    _, vectors = torch.linalg.eigh(projected.mT @ projected)  # ascending
    turned: Tensor = basis @ vectors.flip(-1)
    return turned


def leading_singular_vectors(g: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading right singular vectors of ``g [..., m, n]``, exactly: ``[..., n, r]`` with its own storage."""
    full = rank > min(g.shape[-2:])
    vectors: Tensor = torch.linalg.svd(g, full_matrices=full).Vh[..., :rank, :]
    return vectors.mT.contiguous()


def orthonormalise(p: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span: the Q of a QR decomposition, up to the columns' signs.

    On a CPU LAPACK's Householder QR is two to three times faster than :func:`cholesky_qr2` (docs/lab_notebook.md); on a GPU QR
    goes through the matrices one by one, and batched products are the way.

    Args:
        p: ``[..., n, r]`` with r ≤ n.

    Returns:
        ``[..., n, r]``.
    """
    if p.is_cuda:
        return cholesky_qr2(p)
    householder: Tensor = torch.linalg.qr(p).Q
    return householder


def cholesky_qr2(p: Tensor) -> Tensor:
    """CholeskyQR2 (Yamamoto et al., 2015), batched: Q = P R⁻¹ with RᵀR = PᵀP, twice; Householder's QR where that is no good.

    Scaling the columns to length 1 first changes nothing but the condition number, by orders of magnitude for the power-law
    spectra that gradients have; the Gram matrices are float64. What remains are columns that are all but dependent.

    Args:
        p: ``[..., n, r]`` with r ≤ n.

    Returns:
        ``[..., n, r]``.
    """
    lengths = torch.linalg.vector_norm(p, dim=-2, keepdim=True)
    q, bad = _cholesky_qr(p / lengths.clamp(min=torch.finfo(p.dtype).tiny))
    q, still_bad = _cholesky_qr(q, most_deviation=0.1)
    bad = bad | still_bad
    if bad.any():  # the only wait for a GPU
        q = torch.where(bad[..., None, None], torch.linalg.qr(p).Q, q)  # the others come out as they would alone
    return q


def _cholesky_qr(p: Tensor, most_deviation: float = float("inf")) -> tuple[Tensor, Tensor]:
    """One pass; and which matrices failed, or were further from orthonormal than the second pass can mend."""
    wide = p.double()
    gram = wide.mT @ wide
    deviation = (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs().amax((-2, -1))
    factor, info = torch.linalg.cholesky_ex(gram)
    q = torch.linalg.solve_triangular(factor.mT, wide, upper=True, left=False).to(p.dtype)
    return q, (info != 0) | ~(deviation <= most_deviation)
