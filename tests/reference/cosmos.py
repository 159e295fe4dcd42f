"""COSMOS (Liu et al., arXiv 2502.17410) on one matrix: SOAP in the leading r-dimensional subspace, Muon outside it.

Independent of ``disttrain``: fp64, one matrix, Householder QR, no batching. ``parity="corrected"`` repairs what
lliu606/COSMOS gets wrong with low-rank gradients; ``"reference"`` starts and divides as that code does.
"""

import math

import torch

from tests.reference.newton_schulz import newton_schulz


def orthonormal(columns):
    """The Q of a QR decomposition."""
    Q, _ = torch.linalg.qr(columns)
    return Q


def sketched_basis(G, rank):
    """A Gaussian of seed 0 multiplied by GᵀG four times, then the Ritz vectors by falling Ritz value: [n, rank]."""
    omega = torch.randn(G.shape[1], rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Q = orthonormal(omega)
    for _ in range(4):
        Q = orthonormal(G.T @ (G @ Q))
    _, vectors = torch.linalg.eigh((G @ Q).T @ (G @ Q))
    return Q @ vectors.flip(1)


def singular_basis(G, rank):
    """The right singular vectors of the greatest singular values: [n, rank]."""
    _, _, right = torch.linalg.svd(G, full_matrices=True)
    return right[:rank].T.clone()


class ReferenceCosmos:
    """Feed it one gradient after the other; ``weight`` moves.

    ``momentum`` [m, n], ``basis`` [n, r], ``gram`` [r, r] and ``second`` [m, r] are those of the transposed matrix if
    ``project="min"`` and m < n.
    """

    def __init__(
        self,
        weight,
        *,
        lr=2e-3,
        lr_ratio=0.2,
        betas=(0.95, 0.95),
        eps=1e-8,
        rank=64,
        gamma=0.2,
        weight_decay=0.1,
        nesterov=True,
        refresh_every=1,
        gamma_scaling="fixed",
        project="in",
        parity="corrected",
        coefficients="jordan",
    ):
        m, n = weight.shape
        self.transposed = project == "min" and m < n
        if self.transposed:
            m, n = n, m
        self.weight = weight.double().clone()
        self.rank = min(rank, m, n)
        self.gamma = gamma * math.sqrt(self.rank / n) if gamma_scaling == "width" else gamma
        self.lr, self.lr_ratio, self.eps, self.weight_decay = lr, lr_ratio, eps, weight_decay
        self.beta1, self.beta2 = betas
        self.nesterov, self.refresh_every = nesterov, refresh_every
        self.parity, self.coefficients = parity, coefficients
        self.momentum = torch.zeros(m, n, dtype=torch.float64)
        self.basis = torch.zeros(n, self.rank, dtype=torch.float64)
        self.gram = torch.zeros(self.rank, self.rank, dtype=torch.float64)
        self.second = torch.zeros(m, self.rank, dtype=torch.float64)
        self.t = 0

    def step(self, gradient):
        G = gradient.double().T if self.transposed else gradient.double()
        self.t += 1
        self.momentum = self.beta1 * self.momentum + (1 - self.beta1) * G
        self.move_basis(G)
        self.second = self.beta2 * self.second + (1 - self.beta2) * (G @ self.basis) ** 2
        direction = self.direction(self.smoothed(G))
        self.update = -self.lr * self.lr_ratio * self.with_rms_one(direction)
        if self.transposed:
            self.update = self.update.T
        self.weight = (1 - self.lr * self.weight_decay) * self.weight + self.update

    def move_basis(self, G):
        """One subspace iteration on the mean of GᵀG that basis and gram imply; the basis first, then the gram in it."""
        beta2, U, S = self.beta2, self.basis, self.gram
        if self.t == 1:
            starting = sketched_basis if self.parity == "corrected" else singular_basis
            U = starting(G, self.rank)
            S = (1 - beta2) * (G @ U).T @ (G @ U)
        elif (self.t - 1) % self.refresh_every == 0:
            U_new = orthonormal(beta2 * U @ S + (1 - beta2) * G.T @ (G @ U))
            T = U.T @ U_new
            S = beta2 * T.T @ S @ T + (1 - beta2) * (G @ U_new).T @ (G @ U_new)
            U = U_new
        else:
            S = beta2 * S + (1 - beta2) * (G @ U).T @ (G @ U)
        self.basis, self.gram = U, (S + S.T) / 2

    def smoothed(self, G):
        beta1, t = self.beta1, self.t
        if self.nesterov:
            return ((1 - beta1) * G + beta1 * self.momentum) / (1 - beta1 ** (t + 1))
        return self.momentum / (1 - beta1**t)

    def direction(self, smoothed):
        """A + γB: Adam's quotient inside the subspace, the orthogonalised rest outside."""
        inside = smoothed @ self.basis
        root = torch.sqrt(self.second / (1 - self.beta2**self.t))
        floor = 1e-5 * root.max() if self.parity == "corrected" else torch.tensor(0.0, dtype=torch.float64)
        A = (inside / (torch.maximum(root, floor) + self.eps)) @ self.basis.T
        return A + self.gamma * self.outside(smoothed, smoothed - inside @ self.basis.T)

    def outside(self, smoothed, rest):
        if self.rank == rest.shape[1]:  # the subspace is everything: the rest is round-off
            return torch.zeros_like(rest)
        if self.parity == "corrected" and rest.norm() <= 1e-5 * smoothed.norm():
            return torch.zeros_like(rest)
        return self.with_rms_one(newton_schulz(rest, self.coefficients))

    @staticmethod
    def with_rms_one(x):
        norm = x.norm()
        return math.sqrt(x.numel()) * x / norm if norm > 0 else torch.zeros_like(x)
