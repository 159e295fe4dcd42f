"""Newton–Schulz equals its scalar polynomial on singular values, and keeps every symmetry that has; tolerances are measured."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import SEEDS, SHAPES, conditioned, deviation, gaussian, matrices, orthogonal, power_law
from torch.utils.flop_counter import FlopCounterMode

from disttrain.optim.newton_schulz import TABLES, newton_schulz, newton_schulz_flops
from tests.reference import newton_schulz as reference

every_table = pytest.mark.parametrize("coefficients", list(TABLES))
few = settings(max_examples=30)


def exact(x, coefficients="jordan"):
    return newton_schulz(x, coefficients, dtype=torch.float64)


def sigma_ratios(x):
    """Singular values over the Frobenius norm."""
    return torch.linalg.svdvals(x) / x.norm()


@every_table
def test_the_table_is_the_references(coefficients):
    assert list(TABLES[coefficients]) == reference.COEFFICIENTS[coefficients]


@every_table
@few
@given(x=matrices())
def test_it_is_the_slow_loop(coefficients, x):
    assert deviation(exact(x, coefficients), reference.newton_schulz(x, coefficients)) < 1e-10


@every_table
@few
@given(x=conditioned())
def test_singular_vectors_stay_and_singular_values_go_through_the_polynomial(coefficients, x):
    assert (exact(x, coefficients) - reference.by_singular_values(x, coefficients)).abs().max() < 1e-10


@few
@given(matrices(), st.sampled_from([(torch.float64, 1.2025), (torch.float32, 1.2025), (torch.bfloat16, 1.23)]))
def test_jordans_singular_values_stay_below_their_bound(x, case):
    dtype, bound = case
    assert torch.linalg.svdvals(newton_schulz(x, dtype=dtype).double()).max() <= bound


@few
@given(conditioned(), st.sampled_from([(torch.float64, 0.68), (torch.float32, 0.68), (torch.bfloat16, 0.65)]))
def test_jordan_lifts_all_singular_values_above_three_thousandths(x, case):
    dtype, bound = case
    assert sigma_ratios(x).min() >= 0.9 * 3e-3
    assert torch.linalg.svdvals(newton_schulz(x, dtype=dtype).double()).min() >= bound


@few
@given(conditioned())
def test_it_is_nearly_the_steepest_direction_of_the_spectral_norm(x):
    nuclear = torch.linalg.svdvals(x).sum()
    assert 0.68 <= (x * exact(x)).sum() / nuclear <= 1.2025


@few
@given(conditioned(shapes=st.sampled_from([(5, 9), (12, 7), (16, 16)])))
def test_deepseeks_ten_iterations_end_orthogonal(x):
    out = exact(x if x.shape[0] <= x.shape[1] else x.mT, "deepseek")
    assert (out @ out.mT - torch.eye(len(out))).abs().max() <= 5e-3


@every_table
@few
@given(st.integers(1, 24), SEEDS)
def test_an_orthogonal_matrix_keeps_its_direction(coefficients, size, seed):
    Q = orthogonal(size, seed)
    factor = reference.singular_value(size**-0.5, coefficients)
    assert deviation(exact(7 * Q, coefficients), factor * Q) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@few
@given(x=matrices())
def test_negation_is_exact(dtype, x):
    assert torch.equal(newton_schulz(-x.float(), dtype=dtype), -newton_schulz(x.float(), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@few
@given(x=matrices(), k=st.integers(-20, 20))
def test_a_power_of_two_changes_no_bit(dtype, x, k):
    x = x.float()
    assert torch.equal(newton_schulz(x * 2.0**k, dtype=dtype), newton_schulz(x, dtype=dtype))


@few
@given(conditioned(), st.floats(1e-5, 1e5))
def test_scale_hardly_matters_in_fp32(x, scale):
    x = x.float()
    on_gram = max(x.shape) >= 2 * min(x.shape)
    scaled = newton_schulz(scale * x, dtype=torch.float32)
    assert deviation(scaled, newton_schulz(x, dtype=torch.float32)) < (1e-3 if on_gram else 5e-5)


@few
@given(matrices())
def test_the_transpose_goes_to_the_transpose(x):
    assert deviation(exact(x.mT), exact(x).mT) < 1e-12


@few
@given(conditioned(), SEEDS)
def test_it_turns_with_its_argument(x, seed):
    L, R = orthogonal(x.shape[0], seed), orthogonal(x.shape[1], seed + 1)
    assert deviation(exact(L @ x @ R), L @ exact(x) @ R) < 1e-12


@every_table
@few
@given(shape=SHAPES, seed=SEEDS, rows=st.integers(0, 5), columns=st.integers(0, 5))
def test_zero_rows_and_columns_stay_zero_and_change_nothing(coefficients, shape, seed, rows, columns):
    x = gaussian(*shape, seed=seed)
    padded = exact(torch.nn.functional.pad(x, (0, columns, 0, rows)), coefficients)
    m, n = shape
    assert not padded[m:].any()
    assert not padded[:, n:].any()
    assert deviation(padded[:m, :n], exact(x, coefficients)) < 1e-10


@every_table
def test_a_zero_matrix_stays_zero(coefficients):
    assert torch.equal(newton_schulz(torch.zeros(2, 3, 4), coefficients).float(), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_tiny_and_huge_gradients_come_out_as_others_do(scale):
    x = gaussian(6, 9, dtype=torch.float32)
    assert deviation(newton_schulz(x * scale), newton_schulz(x)) < 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@few
@given(shape=SHAPES, leading=st.sampled_from([(1,), (3,), (2, 3)]), seed=SEEDS)
def test_a_matrix_comes_out_the_same_alone_and_in_a_stack(dtype, shape, leading, seed):
    x = gaussian(*leading, *shape, seed=seed, dtype=torch.float32)
    together = newton_schulz(x, dtype=dtype).flatten(0, -3)
    alone = torch.stack([newton_schulz(each, dtype=dtype) for each in x.flatten(0, -3)])
    if dtype is torch.bfloat16:  # oneDNN rounds its products by the stack's size, now and then: docs/lab_notebook.md
        assert (together - alone).abs().max() <= 2**-6
    else:
        assert torch.equal(together, alone)


@few
@given(matrices())
def test_the_argument_stays_and_the_result_has_the_dtype_asked_for(x):
    before = x.clone()
    for dtype in (torch.bfloat16, torch.float32):
        out = newton_schulz(x, dtype=dtype)
        assert out.dtype is dtype
        assert out.shape == x.shape
    assert torch.equal(x, before)


def test_a_nan_is_not_hidden():
    x = gaussian(4, 3)
    x[1, 2] = torch.nan
    assert newton_schulz(x).isnan().all()


@every_table
@few
@given(shape=SHAPES)
def test_the_operations_counted_are_those_executed(coefficients, shape):
    with FlopCounterMode(display=False) as counter:
        newton_schulz(torch.randn(shape), coefficients)
    assert counter.get_total_flops() == newton_schulz_flops(*shape, coefficients)


@pytest.mark.parametrize("coefficients", ["jordan", "quintic", "polar_express"])
@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_on_the_gram_matrix_of_a_wide_one_it_is_the_same_within_the_rounding_of_float32(coefficients, power):
    x = power_law(24, 100, power, seed=1).float()
    gram, wide = newton_schulz(x, coefficients, torch.float32).double(), exact(x.double(), coefficients)
    assert 0 < deviation(gram, wide) < 5e-3
    with FlopCounterMode(display=False) as counter:
        newton_schulz(x, coefficients, torch.float32)
    assert counter.get_total_flops() < 0.65 * newton_schulz_flops(24, 100, coefficients)
