"""Gossip: no server, and no all-reduce but one merge at the end."""

from disttrain.strategies.gossip.choco import Choco, ChocoConfig
from disttrain.strategies.gossip.communication import (
    AlwaysConfig,
    BudgetConfig,
    CommunicationConfig,
    SometimesConfig,
    TriggeredConfig,
    WindowConfig,
    communications,
)
from disttrain.strategies.gossip.dpsgd import DPSGD, DPSGDConfig
from disttrain.strategies.gossip.engine import Gossip, GossipConfig
from disttrain.strategies.gossip.gradient_push import StochasticGradientPush, StochasticGradientPushConfig
from disttrain.strategies.gossip.noloco import NoLoCo, NoLoCoConfig
from disttrain.strategies.gossip.quasi_global import QuasiGlobalMomentum, QuasiGlobalMomentumConfig
from disttrain.strategies.gossip.tracking import GradientTracking, GradientTrackingConfig

__all__ = [
    "DPSGD",
    "AlwaysConfig",
    "BudgetConfig",
    "Choco",
    "ChocoConfig",
    "CommunicationConfig",
    "DPSGDConfig",
    "Gossip",
    "GossipConfig",
    "GradientTracking",
    "GradientTrackingConfig",
    "NoLoCo",
    "NoLoCoConfig",
    "QuasiGlobalMomentum",
    "QuasiGlobalMomentumConfig",
    "SometimesConfig",
    "StochasticGradientPush",
    "StochasticGradientPushConfig",
    "TriggeredConfig",
    "WindowConfig",
    "communications",
]
