"""SCAFFOLD as its paper has it (arXiv 1910.06378, algorithm 1, options I and II): numpy, client by client, two vectors each."""

import numpy as np


def scaffold_round(x, c, controls, cohort, gradient, full_gradient, steps, lr, server_lr, option):
    """One round; ``controls [N, d]`` is changed. ``gradient(y, client, step)`` is what client sees in a local step."""
    moves, changes = [], []
    for client in cohort:
        y = x.copy()
        for step in range(steps):
            y = y - lr * (gradient(y, client, step) - controls[client] + c)
        new = full_gradient(x, client) if option == 1 else controls[client] - c + (x - y) / (steps * lr)
        moves.append(y - x)
        changes.append(new - controls[client])
        controls[client] = new
    share = len(cohort) / len(controls)
    return x + server_lr * np.mean(moves, axis=0), c + share * np.mean(changes, axis=0)
