"""Keys are well mixed, never collide in practice, and are the same for one worker as for a tensor of workers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain import random
from disttrain.random import Stream, generator, key

words = st.integers(-(2**63), 2**63 - 1)
MASK = 2**64 - 1


def reference_splitmix(state):
    """SplitMix64's output for a state, in unsigned arithmetic, as published (https://prng.di.unimi.it/splitmix64.c)."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def bits(keys):
    """int64 ``[...]`` to its 63 lower bits, float ``[..., 63]``."""
    return ((keys[..., None] >> torch.arange(63)) & 1).double()


def test_the_reference_yields_the_published_sequence():
    assert reference_splitmix(1234567) == 6457827717110365317
    assert reference_splitmix(1234567 + 0x9E3779B97F4A7C15) == 3203168211198807973


@given(words, words, words, words)
def test_a_key_is_the_reference_absorbing_its_words_in_order(seed, stream, round, worker):
    state = 0
    for word in (seed, stream, round, worker):
        state = reference_splitmix(state + word)
    assert key(seed, stream, round, worker) == state % 2**63


def test_keys_never_change():
    assert key(0, Stream.INIT) == 2391539541053276776
    assert key(1, Stream.ORDER, 2, 3) == 626387359006424198


@given(words, st.sampled_from(Stream), words, st.lists(words, min_size=1, max_size=9))
def test_a_tensor_of_workers_gets_the_keys_of_its_workers(seed, stream, round, workers):
    assert key(seed, stream, round, torch.tensor(workers)).tolist() == [key(seed, stream, round, w) for w in workers]


def test_rounds_and_workers_broadcast():
    rounds, workers = torch.arange(3), torch.arange(4)
    grid = key(5, Stream.WORKER, rounds[:, None], workers)
    assert grid.tolist() == [[key(5, Stream.WORKER, r, w) for w in range(4)] for r in range(3)]
    assert torch.equal(key(5, Stream.WORKER, rounds), grid[:, 0])


@given(words, st.integers(2**63, 2**70))
def test_words_are_taken_modulo_two_to_the_64(word, large):
    assert key(large, Stream.INIT, large, word) == key(large % 2**64, Stream.INIT, large % 2**64, word)
    assert key(1, Stream.INIT, large, torch.tensor([word])).item() == key(1, Stream.INIT, large, word)


def test_a_million_keys_do_not_collide():
    rounds, workers = torch.arange(-(-500 // len(Stream)))[:, None], torch.arange(1000)
    keys = torch.stack([key(seed, stream, rounds, workers) for seed in (0, 1) for stream in Stream])
    assert keys.numel() >= 1_000_000
    assert keys.unique().numel() == keys.numel()
    assert keys.min() >= 0


@pytest.mark.parametrize("position", range(4))
def test_each_bit_of_each_word_flips_half_of_the_key(position):
    cases = torch.randint(-(2**63), 2**63 - 1, (400, 4), generator=torch.Generator().manual_seed(position)).tolist()
    for bit in range(0, 64, 7):
        flipped = [[word ^ (1 << bit) if i == position else word for i, word in enumerate(case)] for case in cases]
        before, after = (torch.tensor([key(*case) for case in side]) for side in (cases, flipped))
        rate = (bits(before) - bits(after)).abs().mean(dim=0)
        assert (rate - 0.5).abs().max() < 0.15  # six standard deviations of the mean of 400 coins
        assert abs(rate.mean() - 0.5) < 0.02


def test_consecutive_workers_have_unbiased_and_uncorrelated_bits():
    ones = bits(key(0, Stream.WORKER, 0, torch.arange(20_000))) - 0.5
    assert ones.mean(dim=0).abs().max() < 0.02
    covariance = ones.T @ ones / len(ones) - torch.eye(63) / 4
    assert covariance.fill_diagonal_(0).abs().max() < 0.01


def test_a_generator_repeats_its_draw_and_no_other():
    def draw(*words):
        return torch.rand(4, generator=generator(*words))

    assert torch.equal(draw(0, Stream.WORKER, 1, 2), draw(0, Stream.WORKER, 1, 2))
    others = [(1, Stream.WORKER, 1, 2), (0, Stream.INIT, 1, 2), (0, Stream.WORKER, 2, 2), (0, Stream.WORKER, 1, 3)]
    assert not any(torch.equal(draw(0, Stream.WORKER, 1, 2), draw(*other)) for other in others)


def test_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(0, Stream.INIT))
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_keep_their_numbers():
    names = ["INIT", "DATA", "WORKER", "ORDER", "PARTITION", "COMPRESSION", "TOPOLOGY", "COMMUNICATION"]
    names += ["COHORT", "BATCHES", "LARGE_BATCH", "COIN", "DROPOUT", "LATENCY", "NOISE_UP", "NOISE_DOWN", "CURRICULUM"]
    assert {stream.name: int(stream) for stream in Stream} == {name: number for number, name in enumerate(names)}


def test_normal_draws_are_standard_and_may_begin_anywhere():
    draws = random.normal(key(0, Stream.LATENCY, 0, torch.arange(100)), 1000)
    assert abs(float(draws.mean())) < 0.01
    assert float(draws.std()) == pytest.approx(1.0, abs=0.01)
    assert float((draws.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.005)
    keys = torch.tensor([3, 4])
    assert torch.equal(random.normal(keys, 5, start=7), random.normal(keys, 12)[:, 7:])


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_narrow_tensors_are_refused(dtype):
    with pytest.raises(TypeError, match=str(dtype)):
        key(0, Stream.INIT, 0, torch.zeros(2, dtype=dtype))


def test_draws_may_begin_anywhere():
    keys = torch.tensor([3, 4])
    assert torch.equal(random.bits(keys, 5, start=7), random.bits(keys, 12)[:, 7:])
    assert torch.equal(random.uniform(keys, 5, start=7), random.uniform(keys, 12)[:, 7:])
