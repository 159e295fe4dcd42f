"""Rotary positions keep lengths, and let a product of query and key see nothing but the distance between them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.models.rotary import rotary_table, rotate

CPU = torch.device("cpu")


@st.composite
def two_vectors(draw):
    """A query and a key, fp64 ``[width]`` of an even width, and a base."""
    width = 2 * draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    query, key = torch.randn(2, width, generator=generator, dtype=torch.float64)
    return query, key, draw(st.sampled_from([10.0, 10_000.0, 100_000.0]))


def at_every_position(x, base, time=12):
    """``x`` turned for positions 0 … time − 1, ``[time, width]``."""
    return rotate(x.expand(time, -1), rotary_table(time, len(x), base, CPU))


@given(two_vectors())
def test_a_product_depends_on_the_distance_only(case):
    query, key, base = case
    scores = at_every_position(query, base) @ at_every_position(key, base).T
    for distance in range(12):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)


@given(two_vectors())
def test_position_zero_is_left_alone_and_every_length_is_kept(case):
    x, _, base = case
    turned = at_every_position(x, base)
    assert torch.equal(turned[0], x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm().expand(12), atol=1e-6, rtol=1e-6)


@given(two_vectors())
def test_half_split_pairs_give_the_same_scores_after_a_permutation(case):
    query, key, base = case
    evens_first = torch.cat([torch.arange(0, len(query), 2), torch.arange(1, len(query), 2)])
    ours = at_every_position(query, base) @ at_every_position(key, base).T
    llamas = half_split(query[evens_first], base) @ half_split(key[evens_first], base).T
    torch.testing.assert_close(ours, llamas, atol=1e-5, rtol=1e-5)


def half_split(x, base, time=12):
    """Llama's convention: x · cos + rotate_half(x) · sin, the tables repeated for both halves."""
    cosine, sine = (part.repeat(1, 2) for part in rotary_table(time, len(x), base, CPU))
    first, second = x.chunk(2)
    return x * cosine + torch.cat([-second, first]) * sine


def test_bfloat16_is_turned_in_float32_and_handed_back_as_bfloat16():
    x = torch.randn(2, 64, 16).bfloat16()
    table = rotary_table(64, 16, 1e4, CPU)
    assert torch.equal(rotate(x, table), rotate(x.float(), table).bfloat16())
