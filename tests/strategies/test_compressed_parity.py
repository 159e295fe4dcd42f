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

FEEDBACKS = [Feedback(), EF14(), EF21(), EF21SGDM(0.3), EControl()]
COMPRESSORS = [Int8(), ScaledSign(), TopK(0.1), RandK(0.2), QSGD()]


compressed = partial(partial, Compressed)


@pytest.mark.parametrize("feedback", FEEDBACKS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("reducer", ["gather", "two_phase"])
def test_every_feedback(parity, feedback, reducer):
    parity(compressed(BlockTopK(8, 64), feedback, reducer))


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("reducer", ["gather", "two_phase"])
def test_every_compressor(parity, compressor, reducer):
    parity(compressed(compressor, Feedback() if isinstance(compressor, QSGD) else EF14(), reducer), sizes=(4,))


@pytest.mark.parametrize("size", [2, 4, 5])
@pytest.mark.parametrize("reducer", ["gather", "two_phase"])
def test_weighted_workers(parity, size, reducer):
    parity(compressed(Int8(), EF21W((1.0, 2.0, 3.0, 4.0, 5.0)[:size]), reducer), sizes=(size,))


def test_after_a_dense_warmup_an_all_reduce_remains(parity):
    parity(compressed(BlockTopK(8, 64), EF21(), "gather", warmup_steps=3), tolerance=1e-6)


def test_identity_is_all_reduced(parity):
    parity(compressed(Identity()), tolerance=1e-6)


@pytest.mark.parametrize("feedback", [EF14(), EF21()], ids=lambda each: type(each).__name__)
def test_factors_are_all_reduced(parity, feedback):
    parity(compressed(PowerSGD(2), feedback), tolerance=1e-6)


def test_two_buckets_in_flight(parity):
    parity(compressed(BlockTopK(4, 64), EControl(), "gather"), sizes=(2, 3), wide=True)
