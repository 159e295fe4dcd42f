"""What travels instead of a gradient, and how the workers' payloads become one mean.

Compressors turn vectors into bytes; a feedback says what is compressed and what becomes of the rest; an exchange brings the
workers' payloads together.
"""

from disttrain.compression.base import Bound, Compressor, CompressorConfig, Contraction, Variance, compressors
from disttrain.compression.feedback import (
    EF14,
    EF21,
    EF21SGDM,
    EF21W,
    EControl,
    Feedback,
    FeedbackConfig,
    ef21_step_size,
    feedbacks,
)
from disttrain.compression.power_sgd import PowerSGD
from disttrain.compression.quantize import QSGD, Cast, Identity, Int8
from disttrain.compression.sign import ScaledSign
from disttrain.compression.sparse import BlockTopK, Compose, RandK, TopK

__all__ = [
    "EF14",
    "EF21",
    "EF21SGDM",
    "EF21W",
    "QSGD",
    "BlockTopK",
    "Bound",
    "Cast",
    "Compose",
    "Compressor",
    "CompressorConfig",
    "Contraction",
    "EControl",
    "Feedback",
    "FeedbackConfig",
    "Identity",
    "Int8",
    "PowerSGD",
    "RandK",
    "ScaledSign",
    "TopK",
    "Variance",
    "compressors",
    "ef21_step_size",
    "feedbacks",
]
