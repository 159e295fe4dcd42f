"""How fast a topology mixes: its spectral gap, whether it reaches the exact mean, and whether it connects everybody at all.

With J = 11ᵀ/n, which takes the mean, one round W leaves ‖Wx − x̄‖ ≤ ‖W − J‖₂ ‖x − x̄‖ of the distance to consensus. The spectral
gap is 1 − ‖W − J‖₂: 1 is the mean at once, 0 is no progress for some x. These are dense, O(n³), and for looking at; only
`components` is cheap enough to be asked at the start of every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from disttrain.topology.mixing import Floats, Links

EXACT = 1e-10
"""How near to J, entry by entry, a product counts as exact in float64."""


def product(matrices: Iterable[Floats], size: int) -> Floats:
    """What rounds ``[n, n]`` do one after the other: the last one is leftmost; the identity of ``size`` if there is none."""
    P = np.eye(size)
    for W in matrices:
        P = W @ P
    return P


def spectral_gap(W: Floats) -> float:
    """1 − ‖W − J‖₂ of a doubly stochastic ``[n, n]``, in [0, 1]; 1 for a single worker."""
    return float(np.clip(1 - np.linalg.norm(W - 1 / len(W), ord=2), 0, 1))


def exact_after(matrices: Sequence[Floats], size: int) -> int | None:
    """After how many of these rounds ``[n, n]``, from the first, everybody has the mean; None: not after all of them."""
    P = np.eye(size)
    for done in range(len(matrices) + 1):
        if np.abs(P - 1 / size).max() <= EXACT:
            return done
        if done < len(matrices):
            P = matrices[done] @ P
    return None


def components(links: Links, size: int) -> list[list[int]]:
    """The workers in groups that hear nothing of each other, each ascending, the largest first.

    Directions do not matter: in a doubly stochastic round whoever is heard, over some peers, hears back.
    """
    import networkx as nx  # slow to import

    graph = nx.Graph()
    graph.add_nodes_from(range(size))
    graph.add_edges_from(zip(links.receivers.tolist(), links.senders.tolist(), strict=True))
    return sorted((sorted(group) for group in nx.connected_components(graph)), key=len, reverse=True)
