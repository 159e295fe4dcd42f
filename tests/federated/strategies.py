"""Small federations for hypothesis."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=15)


@dataclass(frozen=True)
class Size:
    clients: int
    cohort: int
    d: int
    steps: int
    seed: int


@st.composite
def sizes(draw):
    clients = draw(st.integers(2, 8))
    return Size(
        clients, draw(st.integers(1, clients)), draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(0, 99))
    )
