"""Counter-style randomness: every draw is named, so nothing depends on who draws first, or on which machine.

A key is a 63-bit integer, hashed from four words:

    seed, stream (what the draw is for), round (when), worker (for whom)

Nothing is carried from draw to draw: resuming at round 1000 needs no saved state, and row r of a simulation, which
hashes a tensor of all workers at once, draws what worker r would draw alone.

The words are absorbed one by one, ``state ← mix(state + γ + word)`` modulo 2⁶⁴, where γ and mix are those of SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; mix is Stafford's variant 13).
Each step is a bijection, so keys that differ in one word only never collide, but for the sign bit, which is dropped.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TypeAlias, overload

import torch
from torch import Tensor

Word: TypeAlias = int | Tensor


class Stream(IntEnum):
    """What a draw is for. A number, once given, keeps its meaning: otherwise old runs would not repeat."""

    INIT = 0
    """The initial parameters."""
    DATA = 1
    """Synthetic data."""
    WORKER = 2
    """What a worker draws for itself while it trains, such as dropout."""
    ORDER = 3
    """The order in which samples are visited."""
    PARTITION = 4
    """Which worker owns which samples."""
    COMPRESSION = 5
    """What compressors draw."""
    TOPOLOGY = 6
    """Who meets whom in a round of gossip."""
    COMMUNICATION = 7
    """Which pairs exchange in a round of gossip."""
    COHORT = 8
    """Which clients a server asks in a round."""
    BATCHES = 9
    """The samples of a client's local steps."""
    LARGE_BATCH = 10
    """The samples of a client's large batch."""
    COIN = 11
    """What a client does in a round, where that is left to chance."""
    DROPOUT = 12
    """Whether a client fails to answer."""
    LATENCY = 13
    """How long a client takes."""
    NOISE_UP = 14
    """What a client's link adds to what it sends."""
    NOISE_DOWN = 15
    """What a client's link adds to what it is sent."""
    CURRICULUM = 16
    """A client's order of its samples, where that is left to chance."""


@overload
def key(seed: int, stream: int, round: int = 0, worker: int = 0) -> int: ...
@overload
def key(seed: int, stream: int, round: Word, worker: Tensor) -> Tensor: ...
@overload
def key(seed: int, stream: int, round: Tensor, worker: int = 0) -> Tensor: ...
def key(seed: int, stream: int, round: Word = 0, worker: Word = 0) -> Word:
    """The key of one draw, in [0, 2⁶³): an int, or an int64 tensor where ``round`` or ``worker`` is one.

    Args:
        seed: the run's seed; any int, taken modulo 2⁶⁴.
        stream: what the draw is for; see `Stream`.
        round: the round, step or epoch; an int, or int64 of a shape that broadcasts with ``worker``'s.
        worker: the worker, or whatever tells a round's draws apart; an int, or int64 such as ``world.ids`` ``[L]``.

    Raises:
        TypeError: if a tensor is not int64, for a narrower one would wrap elsewhere.
    """
    state = _absorb(_absorb(0, seed), stream)
    for word in (round, worker):
        if isinstance(word, Tensor) and word.dtype != torch.int64:
            raise TypeError(f"random.key needs int64 tensors, got {word.dtype}")
        state = _absorb(state, word)
    return state & 0x7FFF_FFFF_FFFF_FFFF


def generator(seed: int, stream: int, round: int = 0, worker: int = 0) -> torch.Generator:
    """A fresh CPU generator, seeded with this draw's key.

    torch's CPU generator (a Mersenne twister) uses only the low 32 bits of its seed, so among 77,000 generators two are
    likely to be the same. Where draws are many and small, one per worker and round, compute them from `key` instead.
    """
    return torch.Generator().manual_seed(key(seed, stream, round, worker))


def bits(keys: Tensor, n: int, start: int = 0) -> Tensor:
    """n draws for each key: int64 ``[...]`` to int64 ``[..., n]``, uniform in [0, 2⁶³), the same on every device.

    Args:
        keys: of the draws.
        n: how many.
        start: how many more are passed over before, so that a long vector can be drawn in pieces.
    """
    numbers = torch.arange(start, start + n, dtype=torch.int64, device=keys.device)
    drawn = _absorb(keys[..., None], numbers)
    assert isinstance(drawn, Tensor)
    return drawn & 0x7FFF_FFFF_FFFF_FFFF


def uniform(keys: Tensor, n: int, start: int = 0) -> Tensor:
    """n draws for each key: int64 ``[...]`` to float32 ``[..., n]``, uniform multiples of 2⁻²⁴ in [0, 1); as in `bits`."""
    return (bits(keys, n, start) >> 39).float().mul_(2.0**-24)


def normal(keys: Tensor, n: int, start: int = 0) -> Tensor:
    """n draws for each key: int64 ``[...]`` to float64 ``[..., n]``, standard normal (Box and Muller, one of each pair)."""
    first, second = ((bits(keys, 2 * n, 2 * start).double() + 0.5) / 2.0**63).unflatten(-1, (n, 2)).unbind(-1)
    drawn: Tensor = (-2 * first.log()).clamp_min(0).sqrt() * (2 * math.pi * second).cos()
    return drawn


def _wrap(x: Word) -> Word:
    """``x`` modulo 2⁶⁴ as a signed 64-bit integer, which a tensor's arithmetic yields by itself."""
    return x if isinstance(x, Tensor) else (x + 2**63) % 2**64 - 2**63


GAMMA = _wrap(0x9E3779B97F4A7C15)
MULTIPLIERS = _wrap(0xBF58476D1CE4E5B9), _wrap(0x94D049BB133111EB)


def _absorb(state: Word, word: Word) -> Word:
    # Wrapped before they are added: an int that does not fit 64 bits cannot be added to a tensor.
    return _mix(_wrap(_wrap(state + GAMMA) + _wrap(word)))


def _mix(z: Word) -> Word:
    """A bijection of 64-bit integers in which each bit of ``z`` flips each bit of the result for half of all ``z``."""
    z = _wrap((z ^ _shift(z, 30)) * MULTIPLIERS[0])
    z = _wrap((z ^ _shift(z, 27)) * MULTIPLIERS[1])
    return z ^ _shift(z, 31)


def _shift(z: Word, bits: int) -> Word:
    """``z`` shifted right as if unsigned: ``>>`` alone would bring in copies of the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
