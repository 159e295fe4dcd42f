"""Making a partition fair enough: every worker gets its least number of samples, from those that own most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def repair(owners: NDArray[np.int64], workers: int, min_samples: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Move random samples to the workers that own less than ``min_samples``, the lowest number first.

    Each sample comes from the worker that owns most at that moment (of equals, the lowest number). No more are moved than are
    missing, and a giver never falls below ``min_samples`` itself, for it owns at least the mean.

    Args:
        owners: of each sample, int64 ``[n]`` in ``range(workers)``; left as they are.
        min_samples: at most ``n / workers``.
    """
    assert min_samples * workers <= len(owners)
    owners, sizes = owners.copy(), np.bincount(owners, minlength=workers)
    for worker in np.flatnonzero(sizes < min_samples):
        while sizes[worker] < min_samples:
            giver = sizes.argmax()
            sample = generator.choice(np.flatnonzero(owners == giver))
            owners[sample] = worker
            sizes[giver] -= 1
            sizes[worker] += 1
    return owners
