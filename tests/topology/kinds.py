"""All kinds of topologies, and the numbers of workers that each accepts."""

from functools import partial

from hypothesis import strategies as st

from disttrain import topology as kinds


def always(n):
    return True


def is_power_of_two(n):
    return n & (n - 1) == 0


def has_two_sides(n):
    return n == 1 or any(n % side == 0 for side in range(2, n))


def path(n):
    return kinds.from_edges(n, [(i, i + 1) for i in range(n - 1)])


KINDS = {
    "ring": (kinds.ring, always),
    "torus": (kinds.torus, has_two_sides),
    "hypercube": (kinds.hypercube, is_power_of_two),
    "exponential": (kinds.exponential, always),
    "one_peer_exponential": (kinds.one_peer_exponential, always),
    "one_peer_hypercube": (kinds.one_peer_hypercube, is_power_of_two),
    "random_matching": (partial(kinds.random_matching, seed=3), always),
    "base_graph": (kinds.base_graph, always),
    "base_graph, k=2": (partial(kinds.base_graph, k=2), always),
    "base_graph, k=3": (partial(kinds.base_graph, k=3), always),
    "star": (kinds.star, always),
    "complete": (kinds.complete, always),
    "edges": (path, always),
}
ONE_WAY = {"exponential", "one_peer_exponential"}


@st.composite
def topologies(draw, names=frozenset(KINDS), most=64):
    """A topology of one of these kinds, of 1 to ``most`` workers."""
    make, accepts = KINDS[draw(st.sampled_from(sorted(names)))]
    return make(draw(st.integers(1, most).filter(accepts)))
