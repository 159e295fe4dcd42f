"""Newton–Schulz: a matrix UΣVᵀ becomes about UVᵀ by matrix products alone, many matrices at a time.

Each iteration maps X to aX + (bA + cA²)X with A = XXᵀ, which leaves singular vectors alone and sends every singular value σ
through the odd polynomial aσ + bσ³ + cσ⁵. After division by the Frobenius norm all σ are in [0, 1]. The sets of coefficients
differ in how fast they lift small σ and in how close to 1 they bring large ones:

    =============  ==========  ============  =========  ===================================================================
    set            iterations  slope at 0    largest σ  source
    =============  ==========  ============  =========  ===================================================================
    jordan         5           485           1.202      Jordan, https://kellerjordan.github.io/posts/muon/
    quintic        5           493           1.145      YouJiacheng, in KellerJordan/modded-nanogpt
    polar_express  5           989           1.141      Amsel et al., The Polar Express, arXiv 2505.16932
    deepseek       10          79,000        1.002      DeepSeek-V4's recipe: eight of Jordan's, then two that settle at 1
    =============  ==========  ============  =========  ===================================================================
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Coefficients = Literal["jordan", "quintic", "polar_express", "deepseek"]

JORDAN = (3.4445, -4.7750, 2.0315)
Table = tuple[tuple[float, float, float], ...]
TABLES: dict[Coefficients, Table] = {
    "jordan": (JORDAN,) * 5,
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (
        (8.15655, -22.48329, 15.87877),
        (4.04293, -2.80892, 0.50002),
        (3.89167, -2.77248, 0.50606),
        (3.28575, -2.36813, 0.46449),
        (2.34654, -1.70978, 0.42324),
    ),
    "deepseek": (JORDAN,) * 8 + ((2.0, -1.5, 0.5),) * 2,
}
MARGIN: dict[Coefficients, float] = {"polar_express": 1.02}
"""What the norm is multiplied by, where a σ that rounding has put above 1 would grow."""


def newton_schulz(
    x: Tensor,
    coefficients: Coefficients = "jordan",
    dtype: torch.dtype = torch.bfloat16,
    eps: float = 1e-15,
    norm: Tensor | None = None,
) -> Tensor:
    """Replace the singular values of matrices ``[..., m, n]`` by about 1.

    The norm is taken in ``x``'s own dtype (torch's Muon takes it in bfloat16), so a tiny gradient comes out as a large one does.

    Args:
        x: the matrices; stays as it is.
        coefficients: one of :data:`TABLES`.
        dtype: of the products.
        eps: the least norm that is divided by; a zero matrix stays zero.
        norm: the Frobenius norms ``[..., 1, 1]``, if they are known.

    Returns:
        ``[..., m, n]`` in ``dtype``. In float32 and float64 a matrix comes out the same alone and in a stack; in bfloat16 on
        a CPU, oneDNN chooses its kernels by the stack's size, and one in some hundred has entries that differ in their last bit.
    """
    transposed = x.shape[-2] > x.shape[-1]
    x = x.mT if transposed else x  # the products are of the smaller side
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) if norm is None else norm
    x = (x / (norm * MARGIN.get(coefficients, 1.0)).clamp(min=max(eps, torch.finfo(x.dtype).tiny))).to(dtype).contiguous()
    shape = x.shape
    x = x.flatten(0, -3) if x.ndim > 2 else x[None]
    iterate = _on_gram if _is_for_gram(x, coefficients) else _directly
    x = iterate(x, TABLES[coefficients]).view(shape)
    return x.mT if transposed else x


def _directly(x: Tensor, table: Table) -> Tensor:
    for a, b, c in table:
        gram = torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x


def _on_gram(x: Tensor, table: Table) -> Tensor:
    """The same with products of the small side only: X is a polynomial Q of XXᵀ times the first X, and Q is what is iterated."""
    gram, q = torch.bmm(x, x.mT), None
    for number, (a, b, c) in enumerate(table, 1):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        q = p if q is None else torch.bmm(p, q)
        if number < len(table):
            gram = torch.bmm(torch.bmm(p, gram), p)
    assert q is not None
    return torch.bmm(q, x)


def _is_for_gram(x: Tensor, coefficients: Coefficients) -> bool:
    """Whether it saves anything, and rounding stays small.

    It costs 34a³ + 4a²b operations for a × b instead of 10a³ + 20a²b: less from b = 1.5a on. A rounding error of the Gram matrix
    grows with the square of the slope at 0, by 10⁵ in five iterations. float32 bears that (errors up to 3e-3, where the spectrum
    is so steep that bfloat16 is off by 0.1 in any way of doing it); bfloat16 does not, nor do ten iterations.
    """
    a, b = x.shape[-2:]
    return b >= 2 * a and len(TABLES[coefficients]) == 5 and x.dtype == torch.float32


def newton_schulz_flops(m: int, n: int, coefficients: Coefficients = "jordan") -> int:
    """Floating-point operations for one ``[m, n]`` matrix, done directly."""
    a, b = sorted((m, n))
    return len(TABLES[coefficients]) * 2 * a * a * (2 * b + a)
