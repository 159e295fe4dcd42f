"""What is trained. Every model is one file beside this one and one import below."""

from disttrain.models.base import ModelConfig, models
from disttrain.models.cnn import CnnConfig
from disttrain.models.gpt import Gpt, GptConfig
from disttrain.models.huggingface import HuggingFaceConfig
from disttrain.models.imported import ImportedConfig
from disttrain.models.mlp import MlpConfig
from disttrain.models.plm import Plm, PlmConfig

__all__ = [
    "CnnConfig",
    "Gpt",
    "GptConfig",
    "HuggingFaceConfig",
    "ImportedConfig",
    "MlpConfig",
    "ModelConfig",
    "Plm",
    "PlmConfig",
    "models",
]
