"""What holds for every compressor, whatever the vector: properties of section 2.4 of the papers' survey, over one list of all."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.compression import Contraction, Variance
from disttrain.compression.base import SENDERS_AT_ONCE
from tests.compression.vectors import COMPRESSORS, DTYPES, KINDS, RANDOM, SEEDS, SPARSE, decoded, gaussian, keys, rows

every = pytest.mark.parametrize("compressor", COMPRESSORS.values(), ids=COMPRESSORS)
few = settings(max_examples=6)
DETERMINISTIC = {name: each for name, each in COMPRESSORS.items() if not each.is_random}


def check_contraction(compressor, x):
    """Up to float32's rounding, and to what is denormal: of float32, or of float16 where values are such."""
    x, y, d = x.double(), decoded(compressor, x).double(), x.shape[-1]
    delta = compressor.bound(d).delta
    lowest = 2.0**-25 if "fp16" in str(compressor) else 2.0**-126
    allowed = (1 - delta) * (1 + 1e-5) + 2.0**-44
    assert ((y - x).square().sum(-1) <= allowed * x.square().sum(-1) + d * lowest**2).all()


@every
@few
@given(data=st.data())
def test_a_payload_has_the_bytes_that_are_declared_and_becomes_floats_of_the_input_s_shape(compressor, data):
    x = data.draw(rows(compressor))
    payload = compressor.encode(x, keys(len(x)))
    assert payload.dtype is torch.uint8
    assert payload.shape == (len(x), compressor.payload_bytes(x.shape[-1]))
    y = compressor.decode(payload, x.shape[-1])
    assert y.shape == x.shape
    assert y.isfinite().all()


@pytest.mark.parametrize("compressor", DETERMINISTIC.values(), ids=DETERMINISTIC)
@settings(max_examples=25)
@given(data=st.data())
def test_contracts_by_its_delta(compressor, data):
    check_contraction(compressor, data.draw(rows(compressor)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compressor", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_contracts_on_every_kind(compressor, kind):
    """Drawn or not: what hypothesis may pass over in a few examples."""
    x = KINDS[kind](gaussian(3, 3 * 97))
    check_contraction(compressor, (x.clamp(-6e4, 6e4) if "fp16" in str(compressor) else x).float())


@every
@pytest.mark.parametrize("d", [100_000, 100_003])
def test_a_hundred_thousand_entries(compressor, d):
    x = gaussian(1, d, dtype=torch.float32)
    assert compressor.encode(x, keys(1)).shape == (1, compressor.payload_bytes(d))
    assert 1 <= compressor.payload_bytes(d) <= 1 + 8 * d
    if not compressor.is_random:
        check_contraction(compressor, x)


@every
@few
@given(data=st.data())
def test_a_row_is_compressed_the_same_alone_and_among_others(compressor, data):
    x = data.draw(rows(compressor))
    each = keys(len(x))
    together = compressor.encode(x, each)
    alone = [compressor.encode(row, key) for row, key in zip(x, each, strict=True)]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(compressor.decode(together, x.shape[-1])[-1], compressor.decode(alone[-1], x.shape[-1]))
    deep = compressor.encode(x[None, :, None], each[None, :, None])
    assert torch.equal(deep[0, :, 0], together)


@every
def test_rows_of_a_column_major_matrix(compressor):
    x = gaussian(50, 3, dtype=torch.float32)
    assert torch.equal(compressor.encode(x.T, keys(3)), compressor.encode(x.T.contiguous(), keys(3)))


@every
@few
@given(data=st.data())
def test_the_same_keys_give_the_same_bytes_and_nothing_else_moves(compressor, data):
    x = data.draw(rows(compressor))
    before, state = x.clone(), torch.get_rng_state()
    first = compressor.encode(x, keys(len(x)))
    kept = first.clone()
    compressor.decode(first, x.shape[-1])
    compressor.add_decoded_(torch.zeros(x.shape), first)
    torch.manual_seed(7)
    assert torch.equal(compressor.encode(x, keys(len(x))), first)
    torch.set_rng_state(state)
    compressor.encode(x, keys(len(x)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("compressor", RANDOM.values(), ids=RANDOM)
def test_a_key_names_the_draw(compressor):
    x = gaussian(1, 200, dtype=torch.float32).expand(3, -1)
    same, other = keys(1, seed=1), keys(1, seed=2)
    first, second, third = decoded_with(compressor, x, torch.cat([same, same, other]))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def decoded_with(compressor, x, each):
    return compressor.decode(compressor.encode(x, each), x.shape[-1])


@pytest.mark.parametrize("compressor", RANDOM.values(), ids=RANDOM)
def test_a_compressor_that_draws_needs_keys(compressor):
    with pytest.raises(ValueError, match="draws: give it keys, int64 and one for each vector"):
        compressor.encode(torch.ones(1, 20))


@every
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [0, 1, 40])
def test_zeros_become_zeros(compressor, dtype, d):
    assert torch.equal(decoded(compressor, torch.zeros(2, d, dtype=dtype)).double(), torch.zeros(2, d, dtype=torch.float64))


@every
@few
@given(
    d=st.sampled_from([1, 2, 15, 16, 17, 97, 300]),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    dtype=st.sampled_from(DTYPES),
    place=st.integers(0, 299),
    seed=SEEDS,
)
def test_one_entry_that_is_not_finite_makes_its_row_nan_and_no_other(compressor, d, bad, dtype, place, seed):
    x = gaussian(3, d, seed=seed, dtype=dtype)
    without = decoded(compressor, x, seed)
    x[1, place % d] = bad
    y = decoded(compressor, x, seed)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], without[[0, 2]])
    added = torch.zeros(3, d)
    compressor.add_decoded_(added, compressor.encode(x, keys(3, seed=seed)))
    assert added[1].isnan().any()
    assert added[[0, 2]].isfinite().all()


@pytest.mark.parametrize("name", ["fp16", "top_k fp16"])
def test_what_float16_cannot_hold_is_not_finite(name):
    x = torch.full((2, 10), 1.0)
    x[0, 3] = 70_000.0
    y = decoded(COMPRESSORS[name], x)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


def test_unbiased_rand_k_scales_in_float32():
    """In float16, five times 60,000 is infinite, and five times 1 + 2⁻¹⁰ is not a number of it."""
    x = torch.tensor([60_000.0, 1 + 2.0**-10, 1 + 2.0**-10, 60_000.0, 1.0], dtype=torch.float16)
    y = decoded(COMPRESSORS["rand_k unbiased"], x.expand(20, -1))
    assert set(y.unique().tolist()) == {0.0, 5.0, 5 * (1 + 2.0**-10), 300_000.0}


@every
@few
@given(exponent=st.integers(-8, 8), d=st.sampled_from([1, 17, 97, 600]), seed=SEEDS)
def test_a_power_of_two_passes_through_bit_by_bit(compressor, exponent, d, seed):
    x = of_moderate_size(d, seed)
    assert torch.equal(decoded(compressor, x * 2.0**exponent), decoded(compressor, x) * 2.0**exponent)


@every
@few
@given(d=st.sampled_from([1, 17, 97, 600]), seed=SEEDS)
def test_a_sign_passes_through(compressor, d, seed):
    x = of_moderate_size(d, seed)
    assert torch.equal(decoded(compressor, -x), -decoded(compressor, x))


def of_moderate_size(d, seed):
    """Magnitudes in [2⁻⁴, 2⁵), of which float16 loses nothing even after a factor of 2⁻⁸."""
    x = gaussian(2, d, seed=seed)
    return (x.sign() * (1 + x.abs().frac()) * 2.0 ** gaussian(2, d, seed=seed + 1).mul(2).round().clamp(-4, 4)).float()


def test_the_sign_of_zero_is_plus():
    x = torch.tensor([0.0, -0.0, -3.0, 1.0])
    assert decoded(COMPRESSORS["sign"], x).tolist() == [1.0, 1.0, -1.0, 1.0]


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if "qsgd" not in name and name not in SPARSE] + ["rand_k"])
@few
@given(data=st.data())
def test_twice_is_once_but_for_rounding(name, data):
    compressor = COMPRESSORS[name]
    once = decoded(compressor, data.draw(rows(compressor, kinds=("gaussian", "heavy", "ties", "zeros"))))
    torch.testing.assert_close(decoded(compressor, once), once, rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in SPARSE if not {"int8", "qsgd", "unbiased"} & set(name.split())])
@few
@given(data=st.data())
def test_a_sparsifier_is_a_projection(name, data):
    compressor = COMPRESSORS[name]
    once = decoded(compressor, data.draw(rows(compressor)))
    assert torch.equal(decoded(compressor, once), once)


@pytest.mark.parametrize("name", ["top_k fp32", "block_top_k 8 bits", "rand_k"])
@few
@given(data=st.data())
def test_what_is_lost_is_orthogonal_to_what_is_kept(name, data):
    x = data.draw(rows(COMPRESSORS[name], dtypes=(torch.float32,)))
    y = decoded(COMPRESSORS[name], x).double()
    assert torch.equal(y * (y - x), torch.zeros_like(y))


@pytest.mark.parametrize("name", ["top_k fp32", "bf16", "sign 1024", "int8 256"])
def test_reordered_entries_come_out_reordered(name):
    """Within one block; not of blocks, which are places."""
    x, order = gaussian(1, 200, dtype=torch.float32), torch.randperm(200, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(decoded(COMPRESSORS[name], x[:, order]), decoded(COMPRESSORS[name], x)[:, order])


@every
@few
@given(data=st.data(), scale=st.sampled_from([1.0, -1.0, 0.3]))
def test_adding_what_is_decoded_is_decoding_and_adding(compressor, data, scale):
    x = data.draw(rows(compressor, kinds=("gaussian", "heavy", "zeros")))
    out = gaussian(*x.shape, seed=5, dtype=torch.float32)
    payload = compressor.encode(x, keys(len(x)))
    expected = out + scale * compressor.decode(payload, x.shape[-1]).float()
    compressor.add_decoded_(out, payload, scale)
    torch.testing.assert_close(out, expected, rtol=1e-6 if abs(scale) < 1 else 0, atol=1e-6 if abs(scale) < 1 else 0)


@every
@pytest.mark.parametrize(("n", "d"), [(1, 40), (5, 40), (3, 1), (3, 0), (SENDERS_AT_ONCE + 3, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_over_senders_adds_them_in_their_order(compressor, n, d, dtype):
    x, weights = gaussian(2, n, d, dtype=torch.float32), gaussian(n, seed=1).exp()
    payloads = compressor.encode(x, keys(2, n))
    expected = torch.zeros(2, d, dtype=dtype)
    for sender in range(n):
        expected += compressor.decode(payloads[:, sender], d).to(dtype) * weights[sender].to(dtype)
    assert torch.equal(compressor.decoded_sum(payloads, d, weights, dtype), expected)


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_what_was_decoded_and_what_is_left_is_what_was_put_in(compressor, dtype, tolerance):
    """Whether or not the compressor contracts: over few steps, nothing blows up."""
    total = torch.zeros(2, 97, dtype=dtype)
    error, out = torch.zeros_like(total), torch.zeros_like(total)
    for step in range(5):
        g = gaussian(2, 97, seed=step, dtype=dtype)
        total += g
        error += g
        payload = compressor.encode(error, keys(2, seed=step))
        compressor.add_decoded_(error, payload, -1.0)
        compressor.add_decoded_(out, payload)
    size = max(out.abs().max(), error.abs().max(), 1.0)
    assert (out + error - total).abs().max() <= tolerance * size


@every
def test_bounds_are_of_the_kind_that_they_say(compressor):
    for d in (0, 1, 2, 100, 2**20):
        bound = compressor.bound(d)
        assert 0 <= bound.delta <= 1 if isinstance(bound, Contraction) else bound.omega >= 0
    assert 0 < compressor.nominal_delta <= 1


def test_these_are_unbiased_and_the_others_contractions():
    unbiased = {name for name, each in COMPRESSORS.items() if isinstance(each.bound(100), Variance)}
    assert unbiased == {"rand_k unbiased", "rand_k qsgd", "qsgd 2", "qsgd 4", "qsgd 8"}


def test_every_kind_of_vector_is_what_its_name_says():
    x = gaussian(1, 40)
    assert KINDS["one-hot"](x).count_nonzero() == 1
    assert len(KINDS["ties"](x).abs().unique()) < 6
    assert 0 < KINDS["denormal"](x).float().abs().max() < torch.finfo(torch.float32).tiny
    assert KINDS["huge"](x).float().square().isinf().any()
