"""What is trained. Every model is one file beside this one and one import below."""

from disttrain.models.base import ModelConfig, models
from disttrain.models.gpt import Gpt, GptConfig
from disttrain.models.huggingface import HuggingFaceConfig
from disttrain.models.imported import ImportedConfig
from disttrain.models.plm import Plm, PlmConfig

__all__ = [
    "Gpt",
    "GptConfig",
    "HuggingFaceConfig",
    "ImportedConfig",
    "ModelConfig",
    "Plm",
    "PlmConfig",
    "models",
]
