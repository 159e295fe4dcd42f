"""Newton–Schulz, one matrix and one product at a time, in the precision of its argument.

Independent of ``disttrain``: written from the formula X ← aX + (bA + cA²)X, A = XXᵀ, after X ← X/‖X‖.
"""

import torch

JORDAN = (3.4445, -4.7750, 2.0315)

COEFFICIENTS = {
    "jordan": [JORDAN] * 5,
    "quintic": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
    "polar_express": [
        (8.15655, -22.48329, 15.87877),
        (4.04293, -2.80892, 0.50002),
        (3.89167, -2.77248, 0.50606),
        (3.28575, -2.36813, 0.46449),
        (2.34654, -1.70978, 0.42324),
    ],
    "deepseek": [JORDAN] * 8 + [(2.0, -1.5, 0.5)] * 2,
}


def singular_value(sigma, coefficients="jordan"):
    """What the iterations make of a singular value of X/‖X‖, a float or a tensor of them."""
    if coefficients == "polar_express":
        sigma = sigma / 1.02
    for a, b, c in COEFFICIENTS[coefficients]:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


def newton_schulz(x, coefficients="jordan", eps=1e-15):
    """About UVᵀ of x = UΣVᵀ, [m, n]."""
    norm = torch.sqrt(torch.sum(x * x))
    result = x / max(norm.item(), eps)
    if coefficients == "polar_express":
        result = result / 1.02
    tall = x.shape[0] > x.shape[1]
    if tall:
        result = result.T
    for a, b, c in COEFFICIENTS[coefficients]:
        gram = result @ result.T
        result = a * result + b * (gram @ result) + c * (gram @ gram @ result)
    return result.T if tall else result


def by_singular_values(x, coefficients="jordan"):
    """The same by a decomposition instead of iterations: U f(Σ/‖Σ‖) Vᵀ."""
    left, sigma, right = torch.linalg.svd(x, full_matrices=False)
    norm = torch.sqrt(torch.sum(sigma * sigma)).item()
    if norm == 0:
        return torch.zeros_like(x)
    return left @ torch.diag(singular_value(sigma / norm, coefficients)) @ right
