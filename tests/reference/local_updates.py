"""Methods of local updates in float64, worker by worker, as their papers write them.

Each takes ``gradient(worker, step, x)``, steps counted from 1, and the start ``x0 [d]`` of n workers, who descend by ``gamma``
times their gradients between exchanges. It returns their parameters ``[steps, n, d]`` as they are after every step, exchange
included, and the result ``[d]``: for that, what is in flight lands, and a round that is open (of at least a step) closes early.
"""

from itertools import pairwise

import numpy as np


def mean(vectors):
    return sum(vectors) / len(vectors)


class Workers:
    """Their parameters ``x``, a list, and all that these have been."""

    def __init__(self, gradient, x0, n, gamma):
        self.gradient, self.gamma, self.n = gradient, gamma, n
        self.x, self.trace = [x0.copy() for _ in range(n)], []

    def step(self, step):
        self.x = [x - self.gamma * self.gradient(worker, step, x) for worker, x in enumerate(self.x)]

    def average_gradients(self, step):
        g = mean([self.gradient(worker, step, x) for worker, x in enumerate(self.x)])
        self.x = [x - self.gamma * g for x in self.x]

    def record(self):
        self.trace.append(np.array(self.x))


class SGD:
    """torch.optim.SGD's formula: a heavy ball, or Nesterov's."""

    def __init__(self, lr, momentum, nesterov):
        self.lr, self.momentum, self.nesterov, self.buffer = lr, momentum, nesterov, 0.0

    def step(self, x, g):
        self.buffer = self.momentum * self.buffer + g
        return x - self.lr * (g + self.momentum * self.buffer if self.nesterov else self.buffer)


def local_sgd(gradient, x0, n, steps, gamma, period):
    """arXiv 1805.09767: parameters are averaged after every round."""
    workers = Workers(gradient, x0, n, gamma)
    for step in range(1, steps + 1):
        workers.step(step)
        if step % period == 0:
            workers.x = [mean(workers.x)] * n
        workers.record()
    return np.array(workers.trace), mean(workers.x)


def post_local_sgd(gradient, x0, n, steps, gamma, period, warmup_steps):
    """arXiv 1808.07217: first gradients are averaged in every step, then parameters after every round."""
    workers = Workers(gradient, x0, n, gamma)
    for step in range(1, steps + 1):
        if step <= warmup_steps:
            workers.average_gradients(step)
        else:
            workers.step(step)
            if (step - warmup_steps) % period == 0:
                workers.x = [mean(workers.x)] * n
        workers.record()
    return np.array(workers.trace), mean(workers.x)


def slowmo(gradient, x0, n, steps, gamma, period, alpha, beta):
    """arXiv 1910.00643, algorithm 1, with its 1/γ and γ."""
    workers, x_t0, u = Workers(gradient, x0, n, gamma), x0, np.zeros_like(x0)
    for step in range(1, steps + 1):
        workers.step(step)
        if step % period == 0 or step == steps:
            u = beta * u + (x_t0 - mean(workers.x)) / gamma
            x_t0 = x_t0 - alpha * gamma * u
        if step % period == 0:
            workers.x = [x_t0] * n
        workers.record()
    return np.array(workers.trace), x_t0


def diloco(gradient, x0, n, steps, gamma, period, lr, momentum):
    """arXiv 2311.08105, algorithm 1, with Nesterov momentum."""
    workers, theta, outer = Workers(gradient, x0, n, gamma), x0, SGD(lr, momentum, nesterov=True)
    for step in range(1, steps + 1):
        workers.step(step)
        if step % period == 0 or step == steps:
            theta = outer.step(theta, mean([theta - x for x in workers.x]))
        if step % period == 0:
            workers.x = [theta] * n
        workers.record()
    return np.array(workers.trace), theta


def streaming_diloco(gradient, x0, n, steps, gamma, period, lr, momentum, fragments, delay=0, mix=0.0):
    """arXiv 2501.18512, algorithm 2: fragment p (indices, t_p) is sent where (t + t_p) % H = 0, and lands ``delay`` later."""
    workers, theta = Workers(gradient, x0, n, gamma), x0.copy()
    outers = [SGD(lr, momentum, nesterov=True) for _ in fragments]
    sent = [None] * len(fragments)
    closed = [0] * len(fragments)

    def send(p, step):
        indices = fragments[p][0]
        sent[p] = mean([theta[indices] - x[indices] for x in workers.x])
        closed[p] = step

    def receive(p):
        indices = fragments[p][0]
        theta[indices] = outers[p].step(theta[indices], sent[p])
        for x in workers.x:
            x[indices] = mix * x[indices] + (1 - mix) * theta[indices]
        sent[p] = None

    for step in range(1, steps + 1):
        workers.step(step)
        for p, (_, offset) in enumerate(fragments):
            if sent[p] is not None and step == closed[p] + delay:
                receive(p)
            if (step + offset) % period == 0:
                send(p, step)
                if delay == 0:
                    receive(p)
        workers.record()
    for p in range(len(fragments)):
        if sent[p] is not None:
            receive(p)
        if steps - closed[p] > (delay if closed[p] else 0):  # what is older than the last landing is overwritten by it
            send(p, steps)
            receive(p)
    return np.array(workers.trace), theta


def eager_diloco(gradient, x0, n, steps, gamma, period, lr, momentum):
    """arXiv 2502.12996: every worker has outer parameters and an outer optimizer of its own.

    That is fed with Δ̃_m(t) = Δ(t − H) + (Δ_m(t) − Δ_m(t − H)) / M. The result is what one outer optimizer makes of mean deltas.
    """
    workers, theta = Workers(gradient, x0, n, gamma), [x0.copy() for _ in range(n)]
    outers = [SGD(lr, momentum, nesterov=True) for _ in range(n)]
    last = [np.zeros_like(x0) for _ in range(n)]
    result, outer = x0, SGD(lr, momentum, nesterov=True)
    for step in range(1, steps + 1):
        workers.step(step)
        if step % period == 0 or step == steps:
            fresh = [theta[m] - workers.x[m] for m in range(n)]
            result = outer.step(result, mean(fresh))
        if step % period == 0:
            eager = [mean(last) + (fresh[m] - last[m]) / n for m in range(n)]
            theta = [outers[m].step(theta[m], eager[m]) for m in range(n)]
            workers.x, last = list(theta), fresh
        workers.record()
    return np.array(workers.trace), result


def overlap_local_sgd(gradient, x0, n, steps, gamma, period, pull, gmf):
    """arXiv 2002.09539, as the authors' code writes it: an anchor z, towards which workers are pulled a round late.

    The result is the anchor that would come next: of the workers as they are now, not pulled if that is in mid-round.
    """
    workers, z, coming, v = Workers(gradient, x0, n, gamma), x0, x0, [np.zeros_like(x0) for _ in range(n)]

    def launch():
        nonlocal v, coming
        v = [gmf * v[i] + (z - workers.x[i]) / gamma for i in range(n)]
        coming = mean([z - gamma * v[i] for i in range(n)])

    for step in range(1, steps + 1):
        workers.step(step)
        if step % period == 0:
            z = coming
            workers.x = [(1 - pull) * x + pull * z for x in workers.x]
            launch()
        workers.record()
    if steps % period:
        z = coming
        launch()
    return np.array(workers.trace), coming


def predicted_mean(gradient, x0, n, steps, gamma, period, pull, beta, warmup_rounds=0):
    """Ours: at a round's end a worker is pulled to where the mean is likely to be, by what is known of earlier rounds' ends.

    The first ``warmup_rounds`` are local SGD's. The result is the mean of the workers at the end; if a round has just closed, of
    where they were before they were pulled.
    """
    workers, ends, result = Workers(gradient, x0, n, gamma), [x0], x0
    for step in range(1, steps + 1):
        workers.step(step)
        result = mean(workers.x)
        if step % period == 0:
            ends.append(result)
            if step // period <= warmup_rounds:
                workers.x = [result] * n
            else:
                v = np.zeros_like(x0)
                for before, after in pairwise(ends[:-1]):
                    v = beta * v + (1 - beta) * (after - before)
                workers.x = [(1 - pull) * x + pull * (ends[-2] + v) for x in workers.x]
        workers.record()
    return np.array(workers.trace), result


def cocod_sgd(gradient, x0, n, steps, gamma, period):
    """arXiv 1906.12043, algorithm 1: the average of what the round began with, launched then, and the own progress since."""
    workers = Workers(gradient, x0, n, gamma)
    began, average = list(workers.x), x0
    for step in range(1, steps + 1):
        workers.step(step)
        if step % period == 0:
            workers.x = [average + (x - start) for x, start in zip(workers.x, began, strict=True)]
            began, average = list(workers.x), mean(workers.x)
        workers.record()
    return np.array(workers.trace), mean(workers.x)


def clipped(m, threshold, mode):
    if threshold is None:
        return m
    if mode == "value":
        return np.array([max(-threshold, min(threshold, entry)) for entry in m])
    length = np.sqrt((m**2).sum())
    return m if length <= threshold else m * threshold / length


def staleness_gap(penalty, value, now, then, reached):
    """Λ of a mean x̄ = ``reached`` whose round began at ``then`` and which counts ``now``."""
    if penalty == "gap":
        return 1 + np.linalg.norm(now - then) / np.linalg.norm(then - reached)
    return value if penalty == "constant" else 1.0


def co2(gradient, x0, n, steps, gamma, period, alpha, beta, penalty="none", value=1.0, clip=None, mode="value", warmup_rounds=0):
    """arXiv 2401.16265: what is averaged while round t goes on are the parameters that round t − 1 has reached.

    The first ``warmup_rounds`` are SlowMo's, whose averages are waited for, and not penalised. A round's average counts at the
    boundary after the next round; at the end, those that are left count one after the other.
    """
    workers, x_t0, m = Workers(gradient, x0, n, gamma), x0, np.zeros_like(x0)
    averaging = None  # where the round began, and the average of where it got

    def count(now, then, reached, stale):
        nonlocal m
        gap = staleness_gap(penalty, value, now, then, reached) if stale else 1.0
        m = beta * m + (then - reached) / gap
        return now - alpha * clipped(m, clip, mode)

    for step in range(1, steps + 1):
        workers.step(step)
        if step % period == 0:
            began, reached = x_t0, mean(workers.x)
            if step // period <= warmup_rounds:
                x_t0 = count(began, began, reached, stale=False)
            else:
                if averaging is not None:
                    x_t0 = count(began, *averaging, stale=True)
                averaging = began, reached
            workers.x = [x_t0] * n
        workers.record()
    last, reached = x_t0, mean(workers.x)
    if averaging is not None:
        x_t0 = count(x_t0, *averaging, stale=True)
    if steps % period:
        x_t0 = count(x_t0, last, reached, stale=steps // period >= warmup_rounds)
    return np.array(workers.trace), x_t0
