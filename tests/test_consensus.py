"""Merging is a mean that knows its limits: bitwise where all agree, the order of the models aside, integers left alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.consensus import Mergeability, consensus_distance, merge
from disttrain.worlds import StackedWorld

SEEDS = st.integers(0, 2**40)
FLOATS = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
NUMBERS = st.integers(1, 12)


def models(number, d, seed, dtype=torch.float64):
    """Rows of both signs and of sizes from 1e-3 to 1e3, with zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, d, generator=generator, dtype=torch.float64)
    x *= 10 ** torch.randint(-3, 4, (1, d), generator=generator)
    x[:, ::3], x[:, 1::7] = -0.0, 0.0
    return x.to(dtype)


def bits(x):
    return x.contiguous().view(torch.uint8)


@given(NUMBERS, st.integers(1, 20), SEEDS, FLOATS)
def test_a_merge_merged_again_is_itself(number, d, seed, dtype):
    once = merge(models(number, d, seed, dtype))
    assert once.shape == (1, d)
    assert once.dtype == dtype
    assert torch.equal(bits(merge(once)), bits(once))


@given(NUMBERS, st.integers(1, 20), SEEDS, FLOATS)
def test_identical_models_merge_to_that_model_to_the_bit(number, d, seed, dtype):
    model = models(1, d, seed, dtype)
    assert torch.equal(bits(merge(model.repeat(number, 1))), bits(model))
    assert consensus_distance(model.repeat(number, 1)) == 0.0


@given(NUMBERS, st.integers(1, 20), SEEDS)
def test_the_order_of_the_models_does_not_matter(number, d, seed):
    x = models(number, d, seed)
    other = x[torch.randperm(number, generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(merge(other), merge(x), rtol=0, atol=1e-12 * float(x.abs().max()))
    assert consensus_distance(other) == pytest.approx(consensus_distance(x), rel=1e-12)


@given(NUMBERS, st.integers(1, 20), SEEDS)
def test_a_merge_is_one_step_of_the_complete_graph(number, d, seed):
    x = models(number, d, seed)
    step = torch.full((number, number), 1 / number, dtype=torch.float64) @ x
    tolerance = 1e-12 * float(x.abs().max())
    torch.testing.assert_close(merge(x).expand(number, -1), step, rtol=0, atol=tolerance)
    torch.testing.assert_close(merge(x), StackedWorld(number).mean(x), rtol=0, atol=tolerance)
    assert consensus_distance(step) <= tolerance**2 * d


@given(NUMBERS, SEEDS)
def test_single_precision_is_summed_in_double(number, seed):
    x = models(number, 9, seed, torch.float32)
    error = (merge(x).double() - x.double().mean(0)).abs()
    assert (error <= 2.0**-24 * x.double().mean(0).abs() + 1e-30).all(), "half a unit in the last place, from rounding once"


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_counters_and_masks_are_the_first_models(dtype):
    x = torch.tensor([[3, 0], [5, 1], [7, 1]]).to(dtype)
    assert torch.equal(merge(x), x[:1])


def test_complex_models_are_averaged_too():
    x = torch.tensor([[1 + 2j], [3 - 4j]], dtype=torch.complex64)
    assert torch.equal(merge(x), torch.tensor([[2 - 1j]], dtype=torch.complex64))
    assert consensus_distance(x) == pytest.approx(1 + 9)


def test_consensus_distance_is_the_mean_square():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]])
    assert consensus_distance(x) == pytest.approx(((1 + 1) + (1 + 1) + (0 + 4)) / 3)


@given(NUMBERS, st.integers(1, 20), SEEDS)
def test_pairs_of_models_are_at_twice_the_consensus_distance(number, d, seed):
    """The mean of ‖xᵢ − xⱼ‖² over all pairs, those of a model with itself too, is 2 Ξ: no mean is needed to know it."""
    x = models(number, d, seed)
    pairs = (x[:, None] - x[None]).square().sum(-1).mean()
    assert 2 * consensus_distance(x) == pytest.approx(float(pairs), rel=1e-9)


REPORT = Mergeability([{"loss": 2.0, "accuracy": 0.4}, {"loss": 3.0, "accuracy": 0.2}], {"loss": 1.0, "accuracy": 0.8}, 4.0, 8.0)


def test_the_report_compares_the_merged_model_with_the_mean_of_the_local_ones():
    assert REPORT.local_mean == {"loss": 2.5, "accuracy": pytest.approx(0.3)}
    assert REPORT.relative_distance == 2 / 8
    assert REPORT.sentence() == "merging lowers the loss from 2.5000, the mean of the 2 models', to 1.0000"
    assert REPORT.facts()["merged"] == {"loss": 1.0, "accuracy": 0.8}


@pytest.mark.parametrize("loss", [2.5, 2.7, math.nan])
def test_a_merge_that_gains_nothing_is_called_so(loss):
    assert "does not help" in Mergeability(REPORT.local, {"loss": loss}, 4.0, 8.0).sentence()


def test_a_mean_of_zeros_is_at_no_finite_share_of_its_length():
    assert Mergeability([], {}, 4.0, 0.0).relative_distance == math.inf
    assert Mergeability([], {}, 0.0, 0.0).relative_distance == 0.0
