"""The workers that train together, and every byte between them."""

from disttrain.worlds.in_flight import InFlight, LaneError
from disttrain.worlds.joining_world import JoiningWorld
from disttrain.worlds.stacked_world import StackedWorld
from disttrain.worlds.surviving import Answer, SurvivesPeers
from disttrain.worlds.surviving_world import SurvivingWorld
from disttrain.worlds.torch_world import TorchWorld
from disttrain.worlds.traffic import Traffic
from disttrain.worlds.world import Lane, MixingRound, World

__all__ = [
    "Answer",
    "InFlight",
    "JoiningWorld",
    "Lane",
    "LaneError",
    "MixingRound",
    "StackedWorld",
    "SurvivesPeers",
    "SurvivingWorld",
    "TorchWorld",
    "Traffic",
    "World",
]
