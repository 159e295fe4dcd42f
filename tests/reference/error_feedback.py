"""Error feedback over n workers' vectors ``[n, d]`` in float64, as the papers write it; ``C`` compresses each row.

``step(g)`` returns what the optimizer sees. All begin after one uncompressed step with gradients ``g0``.
"""

import numpy as np


class Naive:
    def __init__(self, C, g0):
        self.C = C

    def step(self, g):
        return self.C(g).mean(0)


class EF14:
    """arXiv 1901.09847, algorithm 2, with the learning rate outside."""

    def __init__(self, C, g0):
        self.C, self.e = C, np.zeros_like(g0)

    def step(self, g):
        p = self.e + g
        D = self.C(p)
        self.e = p - D
        return D.mean(0)


class EF21:
    """arXiv 2106.05203, algorithm 2."""

    def __init__(self, C, g0):
        self.C, self.h = C, g0.copy()

    def step(self, g):
        self.h = self.h + self.C(g - self.h)
        return self.h.mean(0)


class EF21SGDM:
    """arXiv 2305.15155, algorithm 1."""

    def __init__(self, C, g0, eta):
        self.C, self.eta, self.v, self.h = C, eta, g0.copy(), g0.copy()

    def step(self, g):
        self.v = (1 - self.eta) * self.v + self.eta * g
        self.h = self.h + self.C(self.v - self.h)
        return self.h.mean(0)


class EControl:
    """arXiv 2311.05645, algorithm 2."""

    def __init__(self, C, g0, eta):
        self.C, self.eta, self.e, self.h = C, eta, np.zeros_like(g0), g0.copy()

    def step(self, g):
        D = self.C(self.eta * self.e + g - self.h)
        self.e = self.e + g - self.h - D
        self.h = self.h + D
        return self.h.mean(0)


class EF21W:
    """arXiv 2402.10774, algorithm 2: weights w sum to 1."""

    def __init__(self, C, g0, w):
        self.C, self.w = C, np.asarray(w)[:, None]
        self.h = g0 / (len(g0) * self.w)

    def step(self, g):
        self.h = self.h + self.C(g / (len(g) * self.w) - self.h)
        return (self.w * self.h).sum(0)


def descend(method, gradient, x, gamma, steps, uncompressed_first=True):
    """Every x on the way, ``[steps + 1, d]``: plain gradient descent of what ``method`` returns."""
    way = [x]
    for step in range(steps):
        g = gradient(x)
        x = x - gamma * (g.mean(0) if step == 0 and uncompressed_first else method.step(g))
        way.append(x)
    return np.array(way)
