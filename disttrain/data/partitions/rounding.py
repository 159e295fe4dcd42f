"""Whole numbers in given proportions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def largest_remainder(shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Integers ``[k]`` that sum to ``total``, each less than 1 away from its share of it.

    Rounded down first; what is left goes, one each, to the largest fractions (Hamilton's method; of equals, the first).
    Rounding down alone would leave everybody with a share below 1 / total with nothing.

    Args:
        shares: ``[k]``, not negative, not all zero; they are scaled to sum to 1.
        total: to be distributed.
    """
    exact = shares / shares.sum() * total
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    largest_first = np.argsort(counts - exact, kind="stable")
    counts[largest_first[: total - counts.sum()]] += 1
    return counts
