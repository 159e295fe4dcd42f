"""Local updates: workers train alone for a round, and exchange what they have changed when it is over."""

from disttrain.strategies.local_updates.diloco import DiLoCo, DiLoCoConfig, LocalSGDConfig, SlowMoConfig, StreamingDiLoCoConfig
from disttrain.strategies.local_updates.engine import LocalUpdates, LocalUpdatesConfig
from disttrain.strategies.local_updates.guidance import suggest_period
from disttrain.strategies.local_updates.one_behind import CO2Config, CoCoDSGDConfig, EagerDiLoCoConfig, OneBehind
from disttrain.strategies.local_updates.outer import Clip, OuterStep
from disttrain.strategies.local_updates.penalty import Penalty
from disttrain.strategies.local_updates.predicted_mean import PredictedMean, PredictedMeanConfig
from disttrain.strategies.local_updates.pulled import OverlapLocalSGD, OverlapLocalSGDConfig

__all__ = [
    "CO2Config",
    "Clip",
    "CoCoDSGDConfig",
    "DiLoCo",
    "DiLoCoConfig",
    "EagerDiLoCoConfig",
    "LocalSGDConfig",
    "LocalUpdates",
    "LocalUpdatesConfig",
    "OneBehind",
    "OuterStep",
    "OverlapLocalSGD",
    "OverlapLocalSGDConfig",
    "Penalty",
    "PredictedMean",
    "PredictedMeanConfig",
    "SlowMoConfig",
    "StreamingDiLoCoConfig",
    "suggest_period",
]
