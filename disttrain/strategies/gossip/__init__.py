"""Gossip: no server, and no all-reduce but one merge at the end."""

from disttrain.strategies.gossip.communication import (
    AlwaysConfig,
    CommunicationConfig,
    SometimesConfig,
    WindowConfig,
    communications,
)
from disttrain.strategies.gossip.dpsgd import DPSGD, DPSGDConfig
from disttrain.strategies.gossip.engine import Gossip, GossipConfig

__all__ = [
    "DPSGD",
    "AlwaysConfig",
    "CommunicationConfig",
    "DPSGDConfig",
    "Gossip",
    "GossipConfig",
    "SometimesConfig",
    "WindowConfig",
    "communications",
]
