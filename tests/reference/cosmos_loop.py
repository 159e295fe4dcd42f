"""COSMOS as one would write it down for torch: one parameter after the other, in fp32. A baseline for speed.

It follows the public code (lliu606/COSMOS) in what that costs: a full SVD of the n×n matrix GᵀG at the first step, a
Householder QR per matrix at every step, Newton–Schulz in bfloat16 per matrix, eager. Unlike it, the basis is no view of
the n×n matrix, p.grad is left alone, and G·U is formed once per basis instead of three times per step: a baseline should
not be slow for reasons that one line removes.
"""

import math

import torch
from torch.optim import Optimizer

JORDAN = (3.4445, -4.7750, 2.0315)


def newton_schulz(x, dtype):
    """Five Jordan steps in ``dtype``; the norm is taken in that of ``x`` [m, n]."""
    a, b, c = JORDAN
    X = (x / x.norm().clamp(min=1e-15)).to(dtype)
    tall = X.shape[0] > X.shape[1]
    if tall:
        X = X.T
    for _ in range(5):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return (X.T if tall else X).to(x.dtype)


class CosmosLoop(Optimizer):
    """COSMOS with Nesterov momentum for matrices [m, n]; every parameter must be one."""

    def __init__(
        self,
        params,
        lr=2e-3,
        lr_ratio=0.2,
        betas=(0.95, 0.95),
        eps=1e-8,
        rank=64,
        gamma=0.2,
        weight_decay=0.1,
        ns_dtype=torch.bfloat16,
    ):
        super().__init__(params, {"lr": lr, "lr_ratio": lr_ratio, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.rank, self.gamma, self.ns_dtype = rank, gamma, ns_dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.step_one(p, p.grad.float(), group)

    def step_one(self, p, G, group):
        (beta1, beta2), eps = group["betas"], group["eps"]
        m, n = G.shape
        r = min(self.rank, m, n)
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["momentum"], state["second"] = torch.zeros_like(G), G.new_zeros(m, r)
        state["step"] += 1
        t, M, V = state["step"], state["momentum"], state["second"]

        M.lerp_(G, 1 - beta1)
        if t == 1:
            vectors, _, _ = torch.linalg.svd(G.T @ G)
            U = vectors[:, :r].clone()
            GU = G @ U
            S = (1 - beta2) * GU.T @ GU
        else:
            U_old, S = state["basis"], state["gram"]
            P = beta2 * U_old @ S + (1 - beta2) * G.T @ (G @ U_old)
            U, _ = torch.linalg.qr(P)
            T = U_old.T @ U
            GU = G @ U
            S = beta2 * T.T @ S @ T + (1 - beta2) * GU.T @ GU
        state["basis"], state["gram"] = U, (S + S.T) / 2
        V.mul_(beta2).addcmul_(GU, GU, value=1 - beta2)

        smoothed = ((1 - beta1) * G + beta1 * M) / (1 - beta1 ** (t + 1))
        Z = smoothed @ U
        A = Z / ((V / (1 - beta2**t)).sqrt() + eps) @ U.T
        B = newton_schulz(smoothed - Z @ U.T, self.ns_dtype)
        X = A + self.gamma * math.sqrt(m * n) * B / (B.norm() + eps)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(X * (math.sqrt(m * n) / (X.norm() + eps)), alpha=-group["lr"] * group["lr_ratio"])
