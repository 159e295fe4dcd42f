"""D-PSGD as its paper writes it: dense matrices, one line a step. For tests only."""

import numpy as np


def dpsgd(x0, matrices, updates, order):
    """Parameters ``[steps, n, d]`` after every step.

    Args:
        x0: ``[d]``, where all workers start.
        matrices: ``[steps + 1, n, n]``, the mixing after each step, the first one before any; the identity where nobody talks.
        updates: ``updates(step, x [n, d])``, what is subtracted in step 1, 2, …
        order: ``combine_while_adapt`` or ``adapt_then_combine``.
    """
    x, trace = np.repeat(x0[None], len(matrices[0]), axis=0), []
    for step in range(1, len(matrices)):
        u = updates(step, x)
        x = matrices[step - 1] @ x - u if order == "combine_while_adapt" else matrices[step] @ (x - u)
        trace.append(x)
    return np.array(trace)
