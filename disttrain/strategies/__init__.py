"""What the workers exchange, and when. Every strategy is one file beside this one and one import below."""

from disttrain.strategies.bare import GradientCompression, compress_gradients
from disttrain.strategies.base import Strategy, StrategyConfig, strategies
from disttrain.strategies.compressed import Compressed, CompressedConfig
from disttrain.strategies.ddp import DDP, DDPCastConfig, DDPConfig
from disttrain.strategies.local import LocalConfig

__all__ = [
    "DDP",
    "Compressed",
    "CompressedConfig",
    "DDPCastConfig",
    "DDPConfig",
    "GradientCompression",
    "LocalConfig",
    "Strategy",
    "StrategyConfig",
    "compress_gradients",
    "strategies",
]
