"""The workers that train together, and every byte between them."""

from disttrain.worlds.torch_world import TorchWorld
from disttrain.worlds.traffic import Traffic
from disttrain.worlds.world import World

__all__ = ["TorchWorld", "Traffic", "World"]
