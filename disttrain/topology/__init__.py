"""Who hears from whom, round by round: a pure function from the round's number, the same on every worker.

    topology = disttrain.topology.base_graph(33)
    topology.round(t)           # a Mixing: whom each worker hears from, and with what weight; for World.exchange
    topology.period, topology.degree, topology.symmetric, topology.exact_after
    topology.matrix(t), topology.spectral_gap()     # dense, for looking at

Which one: for any number of workers `base_graph`, which is exact after finitely many rounds; `random_matching` where workers come
and go. `one_peer_exponential` is as cheap and exact for powers of two, but one-way: not for late or lost workers. The static
graphs are for networks whose links are given. `random_push`, and `edges` of one direction, keep the mean only with weights that
travel along: `doubly_stochastic` says so.
"""

from disttrain.topology.base import Topology, TopologyConfig, topologies
from disttrain.topology.base_graphs import BaseGraphConfig, base_graph
from disttrain.topology.colouring import edge_colouring, matchings
from disttrain.topology.mixing import Mixing, Push, damped, in_sites, restrict
from disttrain.topology.one_peer import (
    OnePeerExponentialConfig,
    OnePeerHypercubeConfig,
    RandomMatchingConfig,
    one_peer_exponential,
    one_peer_hypercube,
    random_matching,
)
from disttrain.topology.plot import plot_topology
from disttrain.topology.random_push import RandomPushConfig, random_push
from disttrain.topology.static import (
    CompleteConfig,
    EdgesConfig,
    ExponentialConfig,
    HypercubeConfig,
    RingConfig,
    StarConfig,
    TorusConfig,
    complete,
    exponential,
    from_edges,
    from_networkx,
    hypercube,
    ring,
    star,
    torus,
)

__all__ = [
    "BaseGraphConfig",
    "CompleteConfig",
    "EdgesConfig",
    "ExponentialConfig",
    "HypercubeConfig",
    "Mixing",
    "OnePeerExponentialConfig",
    "OnePeerHypercubeConfig",
    "Push",
    "RandomMatchingConfig",
    "RandomPushConfig",
    "RingConfig",
    "StarConfig",
    "Topology",
    "TopologyConfig",
    "TorusConfig",
    "base_graph",
    "complete",
    "damped",
    "edge_colouring",
    "exponential",
    "from_edges",
    "from_networkx",
    "hypercube",
    "in_sites",
    "matchings",
    "one_peer_exponential",
    "one_peer_hypercube",
    "plot_topology",
    "random_matching",
    "random_push",
    "restrict",
    "ring",
    "star",
    "topologies",
    "torus",
]
