"""Integers of few bits survive the bytes, and the bytes are the same whoever packs them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.compression.codec import (
    FINITE,
    USED,
    from_bytes,
    has_flag,
    header,
    pack,
    packed_bytes,
    set_flag,
    to_bytes,
    unpack,
)

BITS = [1, 2, 4, 8, 12, 16]


def integers(bits, *shape, seed=0):
    return torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=30)
@given(n=st.integers(0, 70), lead=st.sampled_from([(), (1,), (3,), (2, 2)]), seed=st.integers(0, 2**32))
def test_what_is_packed_comes_out_again(bits, n, lead, seed):
    x = integers(bits, *lead, n, seed=seed)
    packed = pack(x, bits)
    assert packed.dtype is torch.uint8
    assert packed.shape == (*lead, packed_bytes(n, bits)) == (*lead, -(-n * bits // 8))
    assert torch.equal(unpack(packed, n, bits).long(), x)


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=30)
@given(n=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_the_first_integer_is_in_the_lowest_bits(bits, n, seed):
    x = integers(bits, n, seed=seed)
    number = sum(int(value) << (bits * place) for place, value in enumerate(x))
    assert bytes(pack(x, bits).tolist()) == number.to_bytes(packed_bytes(n, bits), "little")


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 129])
def test_largest_integers_do_not_spill(bits, n):
    x = torch.full((2, n), 2**bits - 1)
    assert torch.equal(unpack(pack(x, bits), n, bits).long(), x)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_one_bit_packs_alike_with_and_without_numpy(n, monkeypatch):
    """Elsewhere than on a CPU torch packs; here it is made to believe that numpy is of no use."""
    x = integers(1, 3, n)
    with_numpy = pack(x, 1), unpack(pack(x, 1), n, 1)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("meta"))
    without = pack(x, 1), unpack(with_numpy[0], n, 1)
    monkeypatch.undo()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(with_numpy, without, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int8])
@pytest.mark.parametrize("lead", [(), (1,), (3,)])
def test_any_slice_of_a_payload_can_be_read(dtype, lead):
    x = torch.arange(5 * max(1, sum(lead))).view(*lead, 5).to(dtype)
    payload = torch.nn.functional.pad(to_bytes(x), (3, 2))
    assert torch.equal(from_bytes(payload[..., 3:-2], dtype), x)
    assert from_bytes(payload[..., 3:3], dtype).shape == (*lead, 0)


def test_flags_do_not_touch_each_other():
    payload = header(torch.tensor([True, True, False]))
    set_flag(payload, USED, torch.tensor([True, False, True]))
    assert has_flag(payload, FINITE).tolist() == [True, True, False]
    assert has_flag(payload, USED).tolist() == [True, False, True]
