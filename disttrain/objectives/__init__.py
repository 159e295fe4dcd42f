"""What is minimised. Every objective is one file beside this one and one import below."""

from disttrain.objectives.base import Model, Objective, ObjectiveConfig, objectives
from disttrain.objectives.classification import Classification, ClassificationConfig
from disttrain.objectives.next_token import NextToken, NextTokenConfig

__all__ = [
    "Classification",
    "ClassificationConfig",
    "Model",
    "NextToken",
    "NextTokenConfig",
    "Objective",
    "ObjectiveConfig",
    "objectives",
]
