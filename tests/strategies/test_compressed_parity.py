"""Compressed gradients over rows and over processes are the same bits, whatever the compressor, the feedback and the reducer."""

from functools import partial

import pytest

from disttrain.compression import (
    EF14,
    EF21,
    EF21SGDM,
    EF21W,
    QSGD,
    BlockTopK,
    EControl,
    Feedback,
    Identity,
    Int8,
    PowerSGD,
    RandK,
    ScaledSign,
    TopK,
)
from disttrain.strategies import Compressed

REDUCERS = ("gather", "two_phase")
compressed = partial(partial, Compressed)


@pytest.mark.parametrize("reducer", REDUCERS)
def test_every_feedback(parity, reducer):
    feedbacks = (Feedback(), EF14(), EF21(), EF21SGDM(0.3), EControl())
    parity(*(compressed(BlockTopK(8, 64), feedback, reducer) for feedback in feedbacks))


def test_every_compressor(parity):
    biased = (Int8(), ScaledSign(), TopK(0.1), RandK(0.2))
    pairs = [*((each, EF14()) for each in biased), (QSGD(), Feedback())]
    parity(*(compressed(*pair, reducer) for pair in pairs for reducer in REDUCERS), sizes=(4,))


@pytest.mark.parametrize("size", [2, 4, 5])
def test_weighted_workers(parity, size):
    weights = (1.0, 2.0, 3.0, 4.0, 5.0)[:size]
    parity(*(compressed(Int8(), EF21W(weights), reducer) for reducer in REDUCERS), sizes=(size,))


def test_what_is_all_reduced(parity):
    parity(
        compressed(Identity()),
        compressed(PowerSGD(2), EF14()),
        compressed(PowerSGD(2), EF21()),
        compressed(BlockTopK(8, 64), EF21(), "gather", warmup_steps=3),  # in the warm-up
        tolerance=1e-6,
    )


def test_two_buckets_in_flight(parity):
    parity(compressed(BlockTopK(4, 64), EControl(), "gather"), sizes=(2, 3), wide=True)
