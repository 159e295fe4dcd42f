"""Bandwidths as ``--bandwidth`` takes them: one for all workers, or one for each; equal in both directions, or ``down/up``."""

from __future__ import annotations

from disttrain.component import Config
from disttrain.quantities import format_bit_rate, parse_bit_rate

LEAST = 100_000
"""Bits per second below which a shaper's bucket (see ``network.py``) would hold seconds of the link's traffic."""
MOST = 100_000_000_000
"""More than any machine's virtual links carry: to ask for it is a slip."""


class Link(Config):
    """What one worker's link carries, in bits per second; frames count with their headers."""

    down: int
    """To the worker."""
    up: int
    """From the worker."""

    @property
    def slowest(self) -> int:
        """The direction that a collective waits for: every worker sends as much as it receives."""
        return min(self.down, self.up)

    def __str__(self) -> str:
        down, up = format_bit_rate(self.down), format_bit_rate(self.up)
        return down if down == up else f"{down}/{up}"


def parse_link(text: str) -> Link:
    """The link that ``100mbit`` or ``100mbit/10mbit`` (to the worker, from the worker) describes.

    Raises:
        ValueError: for anything else, or less than :data:`LEAST`, or more than :data:`MOST`.
    """
    down, slash, up = text.partition("/")
    rates = [parse_bit_rate(part) for part in ([down, up] if slash else [down, down])]
    if min(rates) < LEAST or max(rates) > MOST:
        raise ValueError(f"must be between {format_bit_rate(LEAST)} and {format_bit_rate(MOST)}")
    return Link(down=rates[0], up=rates[1])


def parse_links(spec: str, workers: int) -> tuple[Link, ...]:
    """Every worker's link: ``100mbit`` for all, ``100mbit,100mbit/10mbit,1gbit`` for one each.

    Raises:
        ValueError: saying which part is wrong and what is allowed.
    """
    parts = spec.split(",")
    if len(parts) not in (1, workers):
        raise ValueError(f"must be one bandwidth for all, or one for each of the {workers} workers, not {len(parts)}")
    links = []
    for part in parts:
        try:
            links.append(parse_link(part))
        except ValueError as error:
            which = f"{part!r} " if len(parts) > 1 else ""
            raise ValueError(f"{which}{error}, or down/up such as 100mbit/10mbit") from None
    return tuple(links if len(links) == workers else links * workers)


def describe(links: tuple[Link, ...]) -> str:
    """The links as they would be written on the command line, in the shortest way."""
    texts = [str(link) for link in links]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)
