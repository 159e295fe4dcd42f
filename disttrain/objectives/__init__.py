"""What is minimised. Every objective is one file beside this one and one import below."""

from disttrain.objectives.base import Objective, ObjectiveConfig, objectives
from disttrain.objectives.next_token import NextToken, NextTokenConfig

__all__ = ["NextToken", "NextTokenConfig", "Objective", "ObjectiveConfig", "objectives"]
