"""Compressors against plain numpy; and their payloads: how many bytes, and that no more comes out than was put in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain import random
from disttrain.compression import QSGD, BlockTopK, Cast, Compose, Identity, Int8, RandK, ScaledSign, TopK
from disttrain.compression.codec import packed_bytes
from tests.compression.vectors import COMPRESSORS, FP32, SEEDS, decoded, gaussian, keys
from tests.reference import compressors as reference

few = settings(max_examples=15)
SIZES = st.sampled_from([0, 1, 2, 15, 16, 17, 97, 300, 301, 600])


def bits(d):
    return random.bits(keys(1), d)[0].tolist()


def draws(d):
    return random.uniform(keys(1), d)[0].double().numpy()


REFERENCES = {
    "identity": (Identity(), lambda x: x),
    "bf16": (Cast("bf16"), reference.bf16),
    "fp16": (Cast("fp16"), reference.fp16),
    "top_k": (TopK(0.1), lambda x: reference.bf16(reference.top_k(x, max(1, round(0.1 * len(x)))))),
    "top_k int8": (TopK(0.01, Int8(1)), lambda x: reference.top_k(x, max(1, round(0.01 * len(x))))),
    "block_top_k 8 bits": (BlockTopK(1, 32, FP32), lambda x: reference.block_top_k(x, 1, 32)),
    "block_top_k bf16": (BlockTopK(3, 16), lambda x: reference.bf16(reference.block_top_k(x, 3, 16))),
    "block_top_k 12 bits": (BlockTopK(4, 300, FP32), lambda x: reference.block_top_k(x, 4, 300)),
    "block_top_k 16 bits": (BlockTopK(9, 5000, FP32), lambda x: reference.block_top_k(x, 9, 5000)),
    "rand_k": (RandK(0.2), lambda x: reference.rand_k(x, max(1, round(0.2 * len(x))), bits(len(x)))),
    "rand_k unbiased": (
        RandK(0.2, unbiased=True),
        lambda x: reference.rand_k(x, k := max(1, round(0.2 * len(x))), bits(len(x)), len(x) / k),
    ),
    "sign": (ScaledSign(16), lambda x: reference.scaled_sign(x, 16)),
    "int8": (Int8(64), lambda x: reference.int8(x, 64)),
    "qsgd 2": (QSGD(2, 16), lambda x: reference.qsgd(x, 1, 16, draws(len(x)))),
    "qsgd 4": (QSGD(4, 256), lambda x: reference.qsgd(x, 7, 256, draws(len(x)))),
    "qsgd 8": (QSGD(8, 64), lambda x: reference.qsgd(x, 127, 64, draws(len(x)))),
}


@pytest.mark.parametrize(("compressor", "expected"), REFERENCES.values(), ids=REFERENCES)
@few
@given(d=SIZES, seed=SEEDS, power=st.sampled_from([1, 3]))
def test_it_is_the_reference(compressor, expected, d, seed, power):
    x = (gaussian(1, d, seed=seed) ** power).float()
    ours, theirs = decoded(compressor, x)[0].double().numpy(), expected(x[0].double().numpy())
    differ = np.abs(ours - theirs) > 2e-6 * np.abs(x[0].numpy()).max(initial=0)
    # Float32 may see a number on the other side of a half, or of a draw: one of six hundred by chance.
    assert differ.sum() <= (1 if isinstance(compressor, Int8 | QSGD) else 0)


@pytest.mark.parametrize(
    ("compressor", "d", "num_bytes"),
    [
        (Identity(), 1000, 1 + 4000),
        (Cast("bf16"), 1000, 1 + 2000),
        (Cast("fp16"), 0, 1),
        (TopK(0.01), 10_000, 1 + 100 * (2 + 4)),
        (TopK(0.01), 3, 1 + 2 + 4),
        (TopK(0.01), 0, 1),
        (BlockTopK(3, 256), 2560, 1 + 30 * (2 + 1)),
        (BlockTopK(3, 256), 2562, 1 + 32 * (2 + 1)),
        (BlockTopK(5, 4096, FP32), 8192, 1 + 10 * 4 + 15),
        (BlockTopK(5, 4096, FP32), 8193, 1 + 11 * 4 + 17),
        (BlockTopK(6, 4097), 4097, 1 + 6 * (2 + 2)),
        (RandK(0.1), 100, 1 + 40 + 8),
        (ScaledSign(1024), 1025, 1 + 2 * 4 + 129),
        (Int8(256), 257, 1 + 2 * 4 + 257),
        (QSGD(2, 256), 257, 1 + 2 * 4 + 65),
        (QSGD(4, 256), 257, 1 + 2 * 4 + 129),
        (QSGD(8, 256), 257, 1 + 2 * 4 + 257),
        (Compose(TopK(0.1), Int8(64)), 1000, 1 + 2 * 4 + 100 + 400),
        (Compose(BlockTopK(8, 64), QSGD(4, 16)), 128, 1 + 4 + 8 + 16),
    ],
    ids=str,
)
def test_payloads_have_these_bytes(compressor, d, num_bytes):
    assert compressor.payload_bytes(d) == num_bytes
    assert compressor.encode(gaussian(1, d), keys(1)).numel() == num_bytes


LEVELS = {"sign": (16, 2), "int8": (16, 255), "qsgd 2": (16, 3), "qsgd 4": (256, 15), "qsgd 8": (64, 255)}


@pytest.mark.parametrize("name", LEVELS)
def test_a_block_holds_no_more_values_than_its_bits_can_tell(name):
    block, levels = LEVELS[name]
    for part in decoded(COMPRESSORS[name], gaussian(1, 4000, dtype=torch.float32))[0].split(block):
        assert len(part.unique()) <= levels


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if "_k" in name])
def test_no_more_entries_come_out_than_are_kept(name):
    compressor, x = COMPRESSORS[name], gaussian(3, 5000, dtype=torch.float32)
    assert (decoded(compressor, x).count_nonzero(-1) <= compressor.kept(5000)).all()
    assert compressor.kept(5000) <= 0.4 * 5000


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name not in ("identity", "fp64")])
def test_fewer_bytes_than_float32_would_take(name):
    assert COMPRESSORS[name].payload_bytes(100_000) < 0.65 * 400_000


def test_a_key_is_all_that_rand_k_says_about_places():
    x = gaussian(1, 5000)
    payload = RandK(0.2).encode(x, keys(1))[0]
    assert payload[-8:].clone().view(torch.int64).item() == int(keys(1))


def test_twelve_bit_places_share_bytes():
    assert packed_bytes(3, 12) == 5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cast("int8"), "dtype must be one of bf16, fp16, fp32, fp64, got 'int8'"),
        (lambda: Int8(0), "block must be from 1 to 4096, got 0"),
        (lambda: Int8(4097), "block must be from 1 to 4096, got 4097"),
        (lambda: QSGD(3), "bits must be 2, 4 or 8 and block positive, got bits=3"),
        (lambda: QSGD(4, 0), "got bits=4, block=0"),
        (lambda: ScaledSign(0), "block must be positive, got 0"),
        (lambda: TopK(0.0), "ratio must be greater than 0 and at most 1, got 0"),
        (lambda: RandK(1.5), "ratio must be greater than 0 and at most 1, got 1.5"),
        (lambda: BlockTopK(0), "k=0, block=256"),
        (lambda: BlockTopK(5, 4), "k=5, block=4"),
        (lambda: BlockTopK(1, 65537), "block <= 65536, got k=1, block=65537"),
        (lambda: RandK(0.1, unbiased=True, values=Int8()), "exact or unbiased, such as Cast.'fp32'. or QSGD"),
        (lambda: RandK(0.1, unbiased=True, values=Cast("bf16")), "exact or unbiased"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
