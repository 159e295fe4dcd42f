"""How parameters move. Every optimizer is one file beside this one and one import below."""

from disttrain.optim.adamw import AdamWConfig
from disttrain.optim.base import OptimizerConfig, optimizers
from disttrain.optim.combined import CombinedOptimizer
from disttrain.optim.group_table import GroupRow, table
from disttrain.optim.groups import NO_DECAY, ROLES, Decay, ParameterGroup, Role, build_param_groups
from disttrain.optim.imported import ImportedConfig
from disttrain.optim.muon import MuonConfig
from disttrain.optim.schedules import ConstantConfig, CosineConfig, ScheduleConfig, WSDCConfig, WSDConfig, schedules
from disttrain.optim.sgd import SGDConfig

__all__ = [
    "NO_DECAY",
    "ROLES",
    "AdamWConfig",
    "CombinedOptimizer",
    "ConstantConfig",
    "CosineConfig",
    "Decay",
    "GroupRow",
    "ImportedConfig",
    "MuonConfig",
    "OptimizerConfig",
    "ParameterGroup",
    "Role",
    "SGDConfig",
    "ScheduleConfig",
    "WSDCConfig",
    "WSDConfig",
    "build_param_groups",
    "optimizers",
    "schedules",
    "table",
]
