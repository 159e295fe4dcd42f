"""Local updates over rows and over processes are the same, but for the order in which an all-reduce sums."""

from disttrain.compression.feedback import EF21Config, NoFeedbackConfig
from disttrain.compression.quantize import Int8Config, QSGDConfig
from disttrain.compression.sparse import BlockTopKConfig
from disttrain.strategies import (
    CO2Config,
    CoCoDSGDConfig,
    DiLoCoConfig,
    EagerDiLoCoConfig,
    LocalSGDConfig,
    OverlapLocalSGDConfig,
    PredictedMeanConfig,
    SlowMoConfig,
    StreamingDiLoCoConfig,
)

METHODS = {
    "local_sgd": LocalSGDConfig(period=4),
    "post-local": LocalSGDConfig(period=4, warmup_steps=7),
    "slowmo": SlowMoConfig(period=4),
    "diloco": DiLoCoConfig(period=4),
    "streaming": StreamingDiLoCoConfig(period=4, fragments=2, delay=3),
    "streaming, late": StreamingDiLoCoConfig(period=6, fragments=3, delay=1, mix=0.0, warmup_steps=2),
    "eager": EagerDiLoCoConfig(period=4),
    "overlap_local_sgd": OverlapLocalSGDConfig(period=4),
    "predicted_mean": PredictedMeanConfig(period=4, warmup_rounds=2),
    "cocod_sgd": CoCoDSGDConfig(period=4),
    "cocod_sgd, with momentum": CoCoDSGDConfig(period=4, outer_momentum=0.4),
    "co2": CO2Config(period=4),
    "co2, warmed up": CO2Config(period=3, outer_momentum=0.5, penalty="stable", clip=1e-3, warmup_rounds=2, warmup_steps=3),
    "co2, clipped by norm": CO2Config(period=3, penalty="constant", penalty_value=2.0, clip=0.1, clip_mode="norm"),
}
COMPRESSED = {
    "local_sgd, few entries": LocalSGDConfig(period=4, compressor=BlockTopKConfig(ratio=0.1, block=64)),
    "co2, bytes": CO2Config(period=4, compressor=Int8Config()),
    "streaming, drawn nibbles": StreamingDiLoCoConfig(
        period=4, fragments=2, delay=2, compressor=QSGDConfig(bits=4), feedback=NoFeedbackConfig()
    ),
    "eager, estimates": EagerDiLoCoConfig(period=3, compressor=Int8Config(), feedback=EF21Config(), reducer="two_phase"),
}


def test_every_method(parity):
    parity(*(config.build for config in METHODS.values()), tolerance=1e-6)


def test_compressed_deltas(parity):
    parity(*(config.build for config in COMPRESSED.values()))
