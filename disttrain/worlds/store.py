"""Torch's stores, which its stubs leave out: where the processes of a run find each other, and leave each other word."""

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

__all__ = ["PrefixStore", "TCPStore"]
