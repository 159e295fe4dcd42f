"""What is learned from. Every source is one file beside this one and one import below."""

from disttrain.data.base import Corpus, DataConfig, Dataset, LabelledDataset, TokenDataConfig, TokenDataset, data_sources
from disttrain.data.digits import DigitsConfig
from disttrain.data.imported import ImportedDataConfig
from disttrain.data.order import EpochOrder, GlobalOrder, Order, microbatches, share
from disttrain.data.partitioned_order import PartitionedOrder, make_order
from disttrain.data.prepared import PreparedConfig
from disttrain.data.python_source import PythonSourceConfig
from disttrain.data.random_tokens import RandomTokensConfig
from disttrain.data.text import TextConfig

__all__ = [
    "Corpus",
    "DataConfig",
    "Dataset",
    "DigitsConfig",
    "EpochOrder",
    "GlobalOrder",
    "ImportedDataConfig",
    "LabelledDataset",
    "Order",
    "PartitionedOrder",
    "PreparedConfig",
    "PythonSourceConfig",
    "RandomTokensConfig",
    "TextConfig",
    "TokenDataConfig",
    "TokenDataset",
    "data_sources",
    "make_order",
    "microbatches",
    "share",
]
