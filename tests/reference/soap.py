"""SOAP (Vyas et al., arXiv 2409.11321) on one matrix, in the order in which nikhilvyas/SOAP does things.

The first gradient only starts the factors: the weight does not move and the step count stays 0.
"""

import math

import torch


def eigenvectors(factor):
    """Eigenvectors as columns, those of the greatest eigenvalues first."""
    _, vectors = torch.linalg.eigh(factor)
    return vectors.flip(1)


class ReferenceSOAP:
    """Feed it one gradient after the other; ``weight`` moves from the second one on.

    ``exp_avg`` and ``exp_avg_sq`` are in the rotated space. A side longer than ``max_size`` has no factor: its Q is I.
    """

    def __init__(
        self,
        weight,
        *,
        lr=3e-3,
        betas=(0.95, 0.95),
        shampoo_beta=None,
        eps=1e-8,
        weight_decay=0.01,
        frequency=10,
        max_size=10_000,
    ):
        self.weight = weight.double().clone()
        self.beta1, self.beta2 = betas
        self.shampoo_beta = self.beta2 if shampoo_beta is None else shampoo_beta
        self.lr, self.eps, self.weight_decay, self.frequency = lr, eps, weight_decay, frequency
        m, n = weight.shape
        self.rotates_left, self.rotates_right = m <= max_size, n <= max_size
        self.left = torch.zeros(m, m, dtype=torch.float64)
        self.right = torch.zeros(n, n, dtype=torch.float64)
        self.basis_left = torch.eye(m, dtype=torch.float64)
        self.basis_right = torch.eye(n, dtype=torch.float64)
        self.exp_avg = torch.zeros_like(self.weight)
        self.exp_avg_sq = torch.zeros_like(self.weight)
        self.t = 0
        self.started = False

    def step(self, gradient):
        G = gradient.double()
        if not self.started:
            self.accumulate(G)
            if self.rotates_left:
                self.basis_left = eigenvectors(self.left)
            if self.rotates_right:
                self.basis_right = eigenvectors(self.right)
            self.started = True
            return
        rotated = self.basis_left.T @ G @ self.basis_right
        self.t += 1
        self.exp_avg = self.beta1 * self.exp_avg + (1 - self.beta1) * rotated
        self.exp_avg_sq = self.beta2 * self.exp_avg_sq + (1 - self.beta2) * rotated**2
        alpha = self.lr * math.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        quotient = self.exp_avg / (torch.sqrt(self.exp_avg_sq) + self.eps)
        self.weight = self.weight - alpha * (self.basis_left @ quotient @ self.basis_right.T)
        self.weight = self.weight * (1 - self.lr * self.weight_decay)  # after the step, not before
        self.accumulate(G)
        if self.t % self.frequency == 0:
            self.refresh()

    def accumulate(self, G):
        self.left = self.shampoo_beta * self.left + (1 - self.shampoo_beta) * (G @ G.T)
        self.right = self.shampoo_beta * self.right + (1 - self.shampoo_beta) * (G.T @ G)

    def refresh(self):
        """One power iteration per side; the first moment is carried over, the second only reordered."""
        unrotated = self.basis_left @ self.exp_avg @ self.basis_right.T
        if self.rotates_left:
            order = self.order(self.left, self.basis_left)
            self.exp_avg_sq = self.exp_avg_sq[order, :]
            self.basis_left, _ = torch.linalg.qr(self.left @ self.basis_left[:, order])
        if self.rotates_right:
            order = self.order(self.right, self.basis_right)
            self.exp_avg_sq = self.exp_avg_sq[:, order]
            self.basis_right, _ = torch.linalg.qr(self.right @ self.basis_right[:, order])
        self.exp_avg = self.basis_left.T @ unrotated @ self.basis_right

    @staticmethod
    def order(factor, basis):
        """Columns by falling estimate of their eigenvalue."""
        estimates = torch.diag(basis.T @ factor @ basis)
        return torch.argsort(estimates, descending=True)
