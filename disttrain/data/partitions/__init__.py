"""Who owns which training samples. Every partition is one file beside this one and one import below."""

from disttrain.data.partitions.base import OwnershipConfig, Part, PartitionConfig, partitions
from disttrain.data.partitions.client_dirichlet import ClientDirichletConfig
from disttrain.data.partitions.dirichlet import DirichletConfig
from disttrain.data.partitions.iid import IidConfig
from disttrain.data.partitions.none import NoneConfig
from disttrain.data.partitions.plot import plot_partition
from disttrain.data.partitions.quantity_skew import QuantitySkewConfig
from disttrain.data.partitions.report import PartitionReport, report
from disttrain.data.partitions.shards import ShardsConfig
from disttrain.data.partitions.source import SourceConfig

__all__ = [
    "ClientDirichletConfig",
    "DirichletConfig",
    "IidConfig",
    "NoneConfig",
    "OwnershipConfig",
    "Part",
    "PartitionConfig",
    "PartitionReport",
    "QuantitySkewConfig",
    "ShardsConfig",
    "SourceConfig",
    "partitions",
    "plot_partition",
    "report",
]
