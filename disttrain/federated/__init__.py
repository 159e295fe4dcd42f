"""Federated training: a server, many clients with data of their own, few of which take part in a round.

An algorithm is three pure functions over flat vectors (`algorithm.py`); engines compute blocks of clients (`engines/`);
`rounds.py` has the loop. What trains a config's model on a config's data stands in ``disttrain.simulation.federated``.
"""

from disttrain.federated.algorithm import Algorithm, AlgorithmConfig, Replies, Reply, Sum, Vectors, federated_algorithms
from disttrain.federated.algorithms import (
    MIFA,
    RERCE,
    SCAFCOM,
    SCALLION,
    ContinualRERCE,
    FedAMD,
    FedAvg,
    FedDyn,
    FedPAGE,
    ServerOptimizer,
)
from disttrain.federated.engines import BatchedEngine, Engine, EngineFailed, RayConfig, RayEngine, SerialEngine
from disttrain.federated.least_squares import LeastSquares
from disttrain.federated.ordered import Order, Ordered
from disttrain.federated.pacing import PacingConfig
from disttrain.federated.rounds import Availability, Federation, RoundReport, Totals
from disttrain.federated.store import ClientStore
from disttrain.federated.work import Part, Plan, Problem, Work

__all__ = [
    "MIFA",
    "RERCE",
    "SCAFCOM",
    "SCALLION",
    "Algorithm",
    "AlgorithmConfig",
    "Availability",
    "BatchedEngine",
    "ClientStore",
    "ContinualRERCE",
    "Engine",
    "EngineFailed",
    "FedAMD",
    "FedAvg",
    "FedDyn",
    "FedPAGE",
    "Federation",
    "LeastSquares",
    "Order",
    "Ordered",
    "PacingConfig",
    "Part",
    "Plan",
    "Problem",
    "RayConfig",
    "RayEngine",
    "Replies",
    "Reply",
    "RoundReport",
    "SerialEngine",
    "ServerOptimizer",
    "Sum",
    "Totals",
    "Vectors",
    "Work",
    "federated_algorithms",
]
