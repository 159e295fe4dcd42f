"""A long vector is worked on in pieces, and nobody can tell."""

from itertools import pairwise

import pytest
import torch

from disttrain import random
from disttrain.compression import QSGD, BlockTopK, Cast, Identity, Int8, RandK, ScaledSign, piecewise, sparse
from disttrain.compression.piecewise import pieces

QUANTIZERS = [Identity(), Cast("fp16"), Int8(), Int8(7), QSGD(2, 100), QSGD(4, 3), ScaledSign(), ScaledSign(37)]
COMPRESSORS = [*QUANTIZERS, BlockTopK(2, 64, Int8(5))]
KEYS = torch.tensor([3, 4])


def results(compressor, x):
    """Of all that a compressor does."""
    d, payload = x.shape[-1], compressor.encode(x, KEYS)
    added = torch.ones(x.shape)
    compressor.add_decoded_(added, payload, -1.0)
    total = compressor.decoded_sum(payload, d, torch.tensor([0.3, 0.7]), torch.float64)
    return payload, compressor.decode(payload, d), added, total


@pytest.mark.parametrize("d", [0, 1, 4096, 9001])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_pieces_change_no_bits(monkeypatch, compressor, d):
    x = torch.randn(2, d)
    x[1, d // 2 :] = torch.nan
    whole = results(compressor, x)
    monkeypatch.setitem(piecewise.PIECES, "cpu", 2048)
    for one, other in zip(whole, results(compressor, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_pieces_end_between_blocks_and_bytes():
    cuts = [(piece.start, piece.stop) for piece in pieces(torch.empty(3, 5), 2**20 + 1, 100)]
    assert len(cuts) > 3
    assert (cuts[0][0], cuts[-1][1]) == (0, 2**20 + 1)
    assert all(stop == start and stop % 800 == 0 for (_, stop), (start, _) in pairwise(cuts))


def test_of_nothing_there_is_one_empty_piece():
    assert list(pieces(torch.empty(2, 0), 0, 256)) == [slice(0, 0)]


@pytest.mark.parametrize("ratio", [1e-9, 0.01, 0.3, 1.0])
def test_few_hashes_are_searched_and_the_same_are_found(monkeypatch, ratio):
    d = 5001
    all_at_once = RandK(ratio)._draw(KEYS, d)
    monkeypatch.setattr(sparse, "DRAWN_AT_ONCE", 1000)
    assert torch.equal(RandK(ratio)._draw(KEYS, d), all_at_once)


def test_if_too_few_hashes_are_large_all_are_searched(monkeypatch):
    d, k = 3000, 30
    monkeypatch.setattr(sparse.math, "sqrt", lambda _: -3.0)  # expects 22 of 30
    draws, _ = sparse._likely_draws(torch.tensor(3), d, k)
    assert torch.equal(draws, random.bits(torch.tensor(3), d))
