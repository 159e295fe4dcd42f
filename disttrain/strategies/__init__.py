"""What the workers exchange, and when. Every strategy is one file beside this one and one import below."""

from disttrain.strategies.bare import GradientCompression, compress_gradients
from disttrain.strategies.base import Strategy, StrategyConfig, strategies
from disttrain.strategies.compressed import Compressed, CompressedConfig
from disttrain.strategies.ddp import DDP, DDPCastConfig, DDPConfig
from disttrain.strategies.gossip import DPSGD, DPSGDConfig
from disttrain.strategies.local import LocalConfig
from disttrain.strategies.local_updates import (
    CO2Config,
    CoCoDSGDConfig,
    DiLoCo,
    DiLoCoConfig,
    EagerDiLoCoConfig,
    LocalSGDConfig,
    OneBehind,
    OverlapLocalSGD,
    OverlapLocalSGDConfig,
    PredictedMean,
    PredictedMeanConfig,
    SlowMoConfig,
    StreamingDiLoCoConfig,
    suggest_period,
)

__all__ = [
    "DDP",
    "DPSGD",
    "CO2Config",
    "CoCoDSGDConfig",
    "Compressed",
    "CompressedConfig",
    "DDPCastConfig",
    "DDPConfig",
    "DPSGDConfig",
    "DiLoCo",
    "DiLoCoConfig",
    "EagerDiLoCoConfig",
    "GradientCompression",
    "LocalConfig",
    "LocalSGDConfig",
    "OneBehind",
    "OverlapLocalSGD",
    "OverlapLocalSGDConfig",
    "PredictedMean",
    "PredictedMeanConfig",
    "SlowMoConfig",
    "Strategy",
    "StrategyConfig",
    "StreamingDiLoCoConfig",
    "compress_gradients",
    "strategies",
    "suggest_period",
]
