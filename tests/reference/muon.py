"""Muon on one matrix, with an exponential mean of gradients as torch.optim.Muon keeps it."""

import math

import torch

from tests.reference.newton_schulz import newton_schulz


def scale(m, n, adjust):
    """What multiplies the learning rate of an [m, n] matrix."""
    return math.sqrt(max(1, m / n)) if adjust == "original" else 0.2 * math.sqrt(max(m, n))


class ReferenceMuon:
    """Feed it one gradient after the other; ``weight`` moves."""

    def __init__(
        self, weight, *, lr, momentum=0.95, nesterov=True, weight_decay=0.1, adjust="match_rms_adamw", coefficients="jordan"
    ):
        self.weight = weight.double().clone()
        self.momentum = torch.zeros_like(self.weight)
        self.mu, self.nesterov, self.coefficients = momentum, nesterov, coefficients
        self.lr, self.weight_decay = lr, weight_decay
        self.scale = scale(*weight.shape, adjust)

    def step(self, gradient):
        G, mu = gradient.double(), self.mu
        self.momentum = mu * self.momentum + (1 - mu) * G
        mixed = (1 - mu) * G + mu * self.momentum if self.nesterov else self.momentum
        orthogonal = newton_schulz(mixed, self.coefficients)
        self.weight = (1 - self.lr * self.weight_decay) * self.weight - self.lr * self.scale * orthogonal
