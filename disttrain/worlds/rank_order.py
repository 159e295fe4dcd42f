"""A mean whose bits do not depend on where its terms live: they are added one by one, in the order of the workers.

``x.mean(0)`` adds in an order of its own as soon as there are more than four rows.
"""

from __future__ import annotations

from torch import Tensor

BLOCK = 64  # rows scaled at a time: this needs memory for these, not for all


def rank_ordered_mean(x: Tensor) -> Tensor:
    """``[n, ...]`` to ``[...]``: each row times 1/n, as in torch DDP, then the first plus the second, plus the third …"""
    total: Tensor | None = None
    for start in range(0, len(x), BLOCK):
        for row in x[start : start + BLOCK] * (1.0 / len(x)):
            total = row.clone() if total is None else total.add_(row)
    assert total is not None, "no rows"
    return total
