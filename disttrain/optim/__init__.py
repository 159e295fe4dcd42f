"""How parameters move. Every optimizer is one file beside this one and one import below."""

from disttrain.optim.adamw import AdamWConfig
from disttrain.optim.base import OptimizerConfig, optimizers
from disttrain.optim.cosmos import COSMOS, COSMOSConfig
from disttrain.optim.group_table import GroupRow, table
from disttrain.optim.groups import NO_DECAY, ROLES, Decay, ParameterGroup, Role, build_param_groups
from disttrain.optim.imported import ImportedConfig
from disttrain.optim.matrix_optimizer import MatrixOptimizer
from disttrain.optim.muon import Muon, MuonConfig
from disttrain.optim.schedules import ConstantConfig, CosineConfig, ScheduleConfig, WSDCConfig, WSDConfig, schedules
from disttrain.optim.sgd import SGDConfig
from disttrain.optim.soap import SOAP, SOAPConfig

__all__ = [
    "COSMOS",
    "NO_DECAY",
    "ROLES",
    "SOAP",
    "AdamWConfig",
    "COSMOSConfig",
    "ConstantConfig",
    "CosineConfig",
    "Decay",
    "GroupRow",
    "ImportedConfig",
    "MatrixOptimizer",
    "Muon",
    "MuonConfig",
    "OptimizerConfig",
    "ParameterGroup",
    "Role",
    "SGDConfig",
    "SOAPConfig",
    "ScheduleConfig",
    "WSDCConfig",
    "WSDConfig",
    "build_param_groups",
    "optimizers",
    "schedules",
    "table",
]
