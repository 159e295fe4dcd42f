"""The problems of error_feedback.py whose gradients are exact: the papers' logistic regression, and a heterogeneous quadratic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """Minimise f(x) = mean of fᵢ(x), where fᵢ is worker i's."""

    start: Tensor
    """float64 ``[d]``."""
    exact: Callable[[Tensor], Tensor]
    """Every fᵢ's gradient: ``[d]`` to ``[n, d]``."""
    gradients: Callable[[Tensor], Tensor]
    """The same, as the workers see them: with noise, if there is any."""
    smoothness: float
    """L, of f."""
    each: list[float]
    """Lᵢ, of every fᵢ."""


def logistic_regression(num_workers: int = 20, regulariser: float = 0.1, sort_by: Literal["class", "norm"] = "class") -> Problem:
    """fᵢ(x) = mean over worker i's samples of log(1 + exp(−y·⟨a, x⟩)) + λ Σ x²/(1 + x²), of section 5 of arXiv 2106.05203.

    The data is scikit-learn's breast cancer set, 569 samples of 30 features, standardised, with an intercept. Sorted
    by class before it is cut, all workers but one have samples of one class only; sorted by norm, their smoothness differs
    most. Lᵢ = λ_max(AᵢᵀAᵢ) / 4nᵢ + 2λ.
    """
    from sklearn.datasets import load_breast_cancer

    features, classes = (torch.from_numpy(each) for each in load_breast_cancer(return_X_y=True))
    features = (features - features.mean(0)) / features.std(0, correction=0)
    features = F.pad(features, (0, 1), value=1.0)
    order = (classes if sort_by == "class" else features.norm(dim=1)).argsort(stable=True)
    signed = features * (2.0 * classes - 1)[:, None]  # y · a
    shards = signed[order].tensor_split(num_workers)
    longest = max(map(len, shards))
    padded = torch.stack([F.pad(shard, (0, 0, 0, longest - len(shard))) for shard in shards])  # [n, m, d]; zeros pull nowhere
    counts = torch.tensor([len(shard) for shard in shards], dtype=padded.dtype)

    def gradients(x: Tensor) -> Tensor:
        pull = torch.sigmoid(-(padded @ x)) / counts[:, None]  # [n, m]
        return 2 * regulariser * x / (1 + x * x).square() - torch.einsum("nm,nmd->nd", pull, padded)

    curvatures = torch.einsum("nmd,nme->nde", padded, padded) / (4 * counts[:, None, None])
    return Problem(
        torch.zeros(features.shape[1], dtype=torch.float64),
        gradients,
        gradients,
        largest_eigenvalue(curvatures.mean(0)) + 2 * regulariser,
        [largest_eigenvalue(curvature) + 2 * regulariser for curvature in curvatures],
    )


def quadratic(heterogeneity: float, noise: float = 0.0, num_workers: int = 10, d: int = 100, seed: int = 0) -> Problem:
    """fᵢ(x) = ½‖Aᵢx − bᵢ‖², Aᵢ² = (i²/n)·I, bᵢ ~ N(0, ζ²/i²·I), as in the experiments of arXiv 2311.05645.

    Args:
        heterogeneity: ζ; with 0 all fᵢ have one minimiser.
        noise: σ; to every gradient, noise of E‖·‖² = σ² is added.
        num_workers: n.
        d: entries of x, which starts at norm 100 or so from N(0, 100·I), whatever ζ is.
        seed: of b, x and the noise.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    i = torch.arange(1, num_workers + 1, dtype=torch.float64)
    curvature, b = i**2 / num_workers, heterogeneity / i[:, None] * normal(num_workers, d)
    start, pull = 10 * normal(d), curvature.sqrt()[:, None] * b

    def gradients(x: Tensor) -> Tensor:
        return curvature[:, None] * x - pull

    def noisy(x: Tensor) -> Tensor:
        return gradients(x) + noise / d**0.5 * normal(num_workers, d)

    return Problem(start, gradients, noisy if noise else gradients, float(curvature.mean()), curvature.tolist())


def largest_eigenvalue(matrix: Tensor) -> float:
    """Of a symmetric ``[d, d]``."""
    return float(torch.linalg.eigvalsh(matrix)[-1])
