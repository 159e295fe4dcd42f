"""Gossip as the papers write it: dense matrices, one line a step. For tests only."""

import numpy as np


def dpsgd(x0, matrices, updates, order, late=0):
    """Parameters ``[steps, n, d]`` after every step, and, last, with all flows added.

    Args:
        x0: ``[d]``, where all workers start.
        matrices: ``[steps + 1, n, n]``, the mixing after each step, the first one before any; the identity where nobody talks.
        updates: ``updates(step, x [n, d])``, what is subtracted in step 1, 2, …
        order: ``combine_while_adapt`` or ``adapt_then_combine``.
        late: local steps that a flow is added late.
    """
    start = np.repeat(x0[None], len(matrices[0]), axis=0)
    x, trace = start, []
    for step in range(1, len(matrices)):
        u = updates(step, x)
        if order == "adapt_then_combine":
            x = matrices[step] @ (x - u)
        else:
            x = x + flow(matrices, [start, *trace], step - 1 - late) - u
        trace.append(x)
    if order == "combine_while_adapt":
        x = x + sum(flow(matrices, [start, *trace], step) for step in range(len(trace) - late, len(trace) + 1))
    return np.array([*trace, x])


def flow(matrices, trace, step):
    """What the mixing after ``step`` adds; ``trace[s]`` are parameters after step s, from 0."""
    return matrices[step] @ trace[step] - trace[step] if step >= 0 else np.zeros_like(trace[0])


def quasi_global(x0, matrices, updates, period, beta, mu):
    """Quasi-global momentum; arguments and result as above, the first matrix unused, those inside rounds too."""
    n = len(matrices[0])
    x, m, trace = np.repeat(x0[None], n, axis=0), np.zeros((n, len(x0))), []
    start = x
    for step in range(1, len(matrices)):
        x = x - updates(step, x) - beta * m
        if step % period == 0:
            x = matrices[step] @ x
            m = mu * m + (1 - mu) * (start - x) / period
            start = x
        trace.append(x)
    return np.array(trace)


def noloco(x0, matrices, updates, period, alpha, beta, gamma):
    """NoLoCo; arguments and result as above."""
    n = len(matrices[0])
    x, d, trace = np.repeat(x0[None], n, axis=0), np.zeros((n, len(x0))), []
    phi = x
    for step in range(1, len(matrices)):
        x = x - updates(step, x)
        if step % period == 0:
            W = matrices[step]
            d = alpha * d + beta * W @ (x - phi) + gamma * (W @ phi - phi)
            phi = phi + d
            x = phi
        trace.append(x)
    return np.array(trace)


def gradient_tracking(x0, matrices, gradients, lr):
    """Gradient tracking; ``gradients(step, x [n, d])``. Returns parameters and estimates before mixing."""
    n = len(matrices[0])
    x, y, last, trace, estimates = np.repeat(x0[None], n, axis=0), np.zeros((n, len(x0))), np.zeros((n, len(x0))), [], []
    for step in range(1, len(matrices)):
        g = gradients(step, x)
        y, last = y + g - last, g
        estimates.append(y)
        x, y = matrices[step] @ (x - lr * y), matrices[step] @ y
        trace.append(x)
    return np.array(trace), np.array(estimates)


def triggered(x0, matrices, updates, threshold, relative):
    """D-PSGD, adapting first, of pairs that find themselves far apart; ``matrices [steps, n, n]`` is what they might mix.

    Returns:
        parameters ``[steps, n, d]`` and who spoke ``[steps, n]``.
    """
    n = len(matrices[0])
    x, trace, spoke = np.repeat(x0[None], n, axis=0), [], []
    reference, residual = x.copy(), np.zeros(n)
    for step, W in enumerate(matrices, 1):
        x = x - updates(step, x)
        estimate = residual + (n - 1) / n * np.square(x - reference).sum(1)
        if relative:
            estimate = estimate / np.square(x).sum(1)
        mixed, said = x.copy(), np.zeros(n, bool)
        for i in range(n):
            peers = [j for j in range(n) if j != i and W[i, j] and (estimate[i] + estimate[j]) / 2 >= threshold**2]
            if peers:
                mixed[i] = x[i] + sum(W[i, j] * (x[j] - x[i]) for j in peers)
                distance = np.mean([np.square(x[j] - x[i]).sum() for j in peers])
                squares = sum(W[i, j] ** 2 for j in peers) + (1 - sum(W[i, j] for j in peers)) ** 2
                residual[i] = distance * max(0.0, n * squares - 1) / (2 * n)
                reference[i], said[i] = mixed[i], True
        x = mixed
        trace.append(x)
        spoke.append(said)
    return np.array(trace), np.array(spoke)


def choco(x0, W, updates, compress, period, gamma):
    """CHOCO-SGD, every worker with a replica of each worker; returns parameters ``[steps, n, d]`` and replicas ``[n, d]``.

    Args:
        x0: ``[d]``, where all workers and all replicas start.
        W: ``[n, n]``, the mixing after each round.
        updates: as above; its first argument goes from 1 to the number of steps.
        compress: ``compress(step, worker, vector [d])``.
        period: steps in a round.
        gamma: the share of the way.
    """
    n, steps = len(W), updates.steps
    x, trace = np.repeat(x0[None], n, axis=0), []
    replicas = np.repeat(x[None], n, axis=0)  # [holder, of whom, d]
    for step in range(1, steps + 1):
        x = x - updates(step, x)
        if step % period == 0:
            q = np.array([compress(step, i, x[i] - replicas[i, i]) for i in range(n)])
            replicas = replicas + q[None]
            x = x + gamma * np.array([sum(W[i, j] * (replicas[i, j] - replicas[i, i]) for j in range(n)) for i in range(n)])
        trace.append(x)
    return np.array(trace), replicas[0]


def gradient_push(x0, matrices, updates):
    """Stochastic gradient push; arguments as of :func:`dpsgd`. Returns models ``[steps, n, d]`` and weights ``[steps, n]``."""
    n = len(matrices[0])
    x, w, z, trace, weights = np.repeat(x0[None], n, axis=0), np.ones(n), np.repeat(x0[None], n, axis=0), [], []
    for step in range(1, len(matrices)):
        x = matrices[step] @ (x - updates(step, z))
        w = matrices[step] @ w
        z = x / w[:, None]
        trace.append(z)
        weights.append(w)
    return np.array(trace), np.array(weights)
