"""Every client's own vectors, kept by the driver, and changed only when the server has accepted the client's reply.

Whoever computes a block is sent the rows of its clients and sends new ones back; here they wait as *staged* until the round is
decided. So a worker process that dies loses nothing, and a client that is dropped keeps what it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

LARGE_BYTES = 2**30
"""From this size on the vectors are in a memory-mapped file, if there is a folder for it."""


class ClientStore:
    """Vectors ``[N, d]`` by name, zero at first.

    Args:
        names: of the vectors; none is fine.
        num_clients: N.
        d: entries of a vector.
        dtype: of their entries.
        folder: for memory-mapped files, used from :data:`LARGE_BYTES` on; None: always in memory.
        numbers: what else is kept, ``[N, w]`` by name, as it is at first; always in memory.

    Attributes:
        vectors: the committed ones, by name.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        num_clients: int,
        d: int,
        dtype: torch.dtype = torch.float32,
        folder: Path | None = None,
        numbers: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        mapped = folder if len(names) * num_clients * d * dtype.itemsize >= LARGE_BYTES else None
        self.vectors = {name: _zeros(num_clients, d, dtype, None if mapped is None else mapped / name) for name in names}
        self.vectors |= {name: each.to(dtype, copy=True) for name, each in numbers.items()}
        self._staged: list[tuple[Tensor, Mapping[str, Tensor]]] = []

    def read(self, clients: Tensor) -> dict[str, Tensor]:
        """Copies of these clients' vectors, ``[L, d]`` each."""
        return {name: each[clients] for name, each in self.vectors.items()}

    def stage(self, clients: Tensor, state: Mapping[str, Tensor]) -> None:
        """Hold new vectors ``[L, d]`` of these clients until the round is decided.

        Raises:
            ValueError: unless they are the vectors that are kept.
        """
        if state.keys() != self.vectors.keys():
            raise ValueError(f"clients keep {sorted(self.vectors)}, and a block has returned {sorted(state)}")
        self._staged.append((clients, state))

    def commit(self) -> None:
        """Make what is staged the clients' own."""
        for clients, state in self._staged:
            for name, rows in state.items():
                self.vectors[name][clients] = rows
        self._staged.clear()

    def discard(self) -> None:
        """Forget what is staged."""
        self._staged.clear()


def _zeros(num_clients: int, d: int, dtype: torch.dtype, file: Path | None) -> Tensor:
    if file is None:
        return torch.zeros(num_clients, d, dtype=dtype)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)  # what another start has left: a new file is all zeros
    mapped = torch.from_file(str(file), shared=True, size=num_clients * d, dtype=dtype)
    return mapped.view(num_clients, d)
