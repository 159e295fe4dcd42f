"""Who computes blocks. Every engine gives the same replies; what differs is speed."""

from disttrain.federated.engines.base import Engine, EngineFailed
from disttrain.federated.engines.batched import BatchedEngine
from disttrain.federated.engines.ray import RayConfig, RayEngine
from disttrain.federated.engines.serial import SerialEngine

__all__ = ["BatchedEngine", "Engine", "EngineFailed", "RayConfig", "RayEngine", "SerialEngine"]
