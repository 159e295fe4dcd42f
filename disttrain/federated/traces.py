"""Who is there in which round, from a file.

A trace is a CSV file with the header ``client,from,until`` and a line for each stretch of rounds in which a client can be asked:
``from`` on, and no longer in ``until``; rounds are counted from 0::

    client,from,until
    0,0,40
    0,60,100
    7,0,100

A client may have several lines, in any order; one that has none is never there.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

HEADER = ["client", "from", "until"]


@dataclass(frozen=True, eq=False)
class Trace:
    """Stretches of rounds.

    Args:
        clients: int64 ``[n]``.
        starts: the first round of each.
        ends: the first round after it.
    """

    clients: Tensor
    starts: Tensor
    ends: Tensor

    def there(self, clients: Tensor, round: int) -> Tensor:
        """Which of these clients are there: booleans ``[S]``."""
        return torch.isin(clients, self.clients[(self.starts <= round) & (round < self.ends)])


def read_trace(path: str) -> Trace:
    """The trace in a file.

    Raises:
        ValueError: with the line, if it is none, or cannot be read.
    """
    try:
        return _read(path, Path(path).stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None


@lru_cache(maxsize=8)
def _read(path: str, modified: int) -> Trace:
    """Once for each version of a file: a round asks again."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    if not lines or [each.strip() for each in lines[0]] != HEADER:
        raise ValueError(
            f"{path}:1: must be the header {','.join(HEADER)}, got {','.join(lines[0]) if lines else 'an empty file'}"
        )
    stretches = [_stretch(path, number, line) for number, line in enumerate(lines[1:], 2) if line]
    if not stretches:
        raise ValueError(f"{path}: has no line below its header, so no client would ever be there")
    clients, starts, ends = torch.tensor(stretches).unbind(1)
    return Trace(clients, starts, ends)


def _stretch(path: str, number: int, line: list[str]) -> tuple[int, int, int]:
    try:
        client, start, end = (int(each) for each in line)
        if 0 <= client < 2**62 and 0 <= start < end < 2**62:
            return client, start, end
    except ValueError:
        pass
    raise ValueError(f"{path}:{number}: must be a client and rounds, from < until, such as 7,0,100; got {','.join(line)}")
