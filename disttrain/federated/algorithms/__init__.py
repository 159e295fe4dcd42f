"""Federated algorithms. Every family is one file beside this one and one import below."""

from disttrain.federated.algorithms.fedamd import FedAMD, FedAMDConfig, FedAMDSequentialConfig
from disttrain.federated.algorithms.fedavg import FedAvg, FedAvgConfig
from disttrain.federated.algorithms.feddyn import FedDyn, FedDynConfig
from disttrain.federated.algorithms.fedpage import FedPAGE, FedPAGEConfig
from disttrain.federated.algorithms.mifa import MIFA, MIFAConfig
from disttrain.federated.algorithms.rerce import RERCE, ContinualRERCE, ContinualRERCEConfig, RERCEConfig
from disttrain.federated.algorithms.scallion import SCAFCOM, SCALLION, ScafcomConfig, ScaffoldConfig, ScallionConfig
from disttrain.federated.algorithms.server_optimizers import ServerOptimizer

__all__ = [
    "MIFA",
    "RERCE",
    "SCAFCOM",
    "SCALLION",
    "ContinualRERCE",
    "ContinualRERCEConfig",
    "FedAMD",
    "FedAMDConfig",
    "FedAMDSequentialConfig",
    "FedAvg",
    "FedAvgConfig",
    "FedDyn",
    "FedDynConfig",
    "FedPAGE",
    "FedPAGEConfig",
    "MIFAConfig",
    "RERCEConfig",
    "ScafcomConfig",
    "ScaffoldConfig",
    "ScallionConfig",
    "ServerOptimizer",
]
