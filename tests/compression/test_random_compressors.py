"""What holds in expectation: means and second moments over many keys, to five standard errors; and how tight bounds are."""

import pytest
import torch
from torch import tensor

from disttrain.compression import QSGD, BlockTopK, Cast, Compose, Contraction, Int8, RandK, ScaledSign, TopK, Variance
from tests.compression.vectors import COMPRESSORS, FP32, KINDS, decoded, gaussian

N = 4000
UNBIASED = {name: each for name, each in COMPRESSORS.items() if isinstance(each.bound(100), Variance)} | {
    "rand_k of half, qsgd 2": Compose(RandK(0.5, unbiased=True), QSGD(2, 4)),
    "rand_k of all, qsgd 2": Compose(RandK(1.0, unbiased=True), QSGD(2, 4)),
}
CONTRACTIVE_IN_THE_MEAN = {name: each for name, each in COMPRESSORS.items() if each.is_random and name not in UNBIASED}


def draws(compressor, x):
    """``[N, d]`` results of one vector, in float64, each with a key of its own."""
    return decoded(compressor, x.float().expand(N, -1)).double()


def moments(compressor, x):
    """Squared length of the mean error, and mean squared length of the error, both over ‖x‖²."""
    errors, size = draws(compressor, x) - x.float(), x.float().double().square().sum()
    return errors.mean(0).square().sum() / size, errors.square().sum(-1).mean() / size


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "equal", "one-hot", "ties"])
@pytest.mark.parametrize("d", [2, 4, 33])
@pytest.mark.parametrize("compressor", UNBIASED.values(), ids=UNBIASED)
def test_the_mean_is_the_vector_and_the_variance_at_most_omega(compressor, kind, d):
    omega = compressor.bound(d).omega
    bias, variance = moments(compressor, KINDS[kind](gaussian(d, seed=3)))
    # A heavy tail is one large entry, whose draws are few-valued: 5 standard errors of its square, not of a Gaussian's.
    assert variance <= omega * (1 + 5 * (max(1.0, omega) / N) ** 0.5) + 1e-6
    assert bias <= 25 * max(variance, 1e-9) / N
    for coordinate, errors in enumerate((draws(compressor, gaussian(d)) - gaussian(d).float()).T):
        assert errors.mean().abs() <= 5 * errors.std() / N**0.5 + 1e-6, f"entry {coordinate} is biased"


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "equal", "one-hot"])
@pytest.mark.parametrize("d", [1, 4, 33, 100])
@pytest.mark.parametrize("compressor", CONTRACTIVE_IN_THE_MEAN.values(), ids=CONTRACTIVE_IN_THE_MEAN)
def test_contracts_in_the_mean(compressor, kind, d):
    _, error = moments(compressor, KINDS[kind](gaussian(d, seed=1)))
    assert error <= (1 - compressor.bound(d).delta) + 5 * (0.25 / N) ** 0.5 * (compressor.bound(d).delta < 1)


@pytest.mark.parametrize(("ratio", "d"), [(0.2, 20), (0.34, 3), (0.01, 10), (1.0, 7)])
def test_every_entry_is_kept_as_often_as_any(ratio, d):
    kept = draws(RandK(ratio), torch.ones(d))
    assert (kept.sum(-1) == RandK(ratio).kept(d)).all()
    assert (kept.mean(0) - RandK(ratio).kept(d) / d).abs().max() <= 5 * (0.25 / N) ** 0.5


def test_entries_are_kept_independently_of_each_other_but_for_their_number():
    kept = draws(RandK(0.5), torch.ones(6))
    together = (kept.T @ kept / N)[~torch.eye(6, dtype=torch.bool)]
    assert (together - 3 / 6 * 2 / 5).abs().max() <= 5 * (0.16 / N) ** 0.5


@pytest.mark.parametrize(("levels", "bits"), [(1, 2), (7, 4), (127, 8)])
def test_qsgd_leaves_the_grid_alone(levels, bits):
    """Multiples of norm / s; here the norm is the one entry."""
    x = torch.zeros(16)
    x[3] = -2.5
    assert torch.equal(draws(QSGD(bits, 16), x), x.double().expand(N, -1))


@pytest.mark.parametrize(
    ("compressor", "x", "share"),
    [
        (TopK(0.1, FP32), torch.ones(100), 0.9),
        (BlockTopK(3, 16, FP32), torch.ones(64), 13 / 16),
        (ScaledSign(16), torch.eye(16)[3], 15 / 16),
        (Int8(64), tensor([127.0] + 63 * [0.5 + 1e-5]), 63 * 0.25 / (127**2 + 63 * 0.25)),  # of 64 / (4 · 127²) = .000992
        (Cast("bf16"), tensor([1 + 2.0**-8]), (2.0**-8 / (1 + 2.0**-8)) ** 2),
        (Cast("fp16"), tensor([1 + 2.0**-11]), (2.0**-11 / (1 + 2.0**-11)) ** 2),
    ],
    ids=lambda each: str(each).split("(")[0],
)
def test_the_bound_is_met_by_the_worst_vector(compressor, x, share):
    """So nobody may declare a greater δ: at most a percent, of what may be lost, is unused."""
    lost = float((decoded(compressor, x).double() - x).square().sum() / x.double().square().sum())
    assert lost == pytest.approx(share, rel=1e-3)
    assert lost == pytest.approx(1 - compressor.bound(len(x)).delta, rel=0.02)


@pytest.mark.parametrize(
    ("compressor", "x", "omega"),
    [
        (QSGD(2, 4), torch.ones(4), 1.0),  # halfway between the levels 0 and 1
        (RandK(0.25, unbiased=True), gaussian(8), 3.0),
        (Compose(RandK(0.5, unbiased=True), QSGD(2, 4)), torch.ones(8), 3.0),  # (1 + 1)(1 + 1) − 1
    ],
    ids=["qsgd", "rand_k", "both"],
)
def test_the_variance_is_met_by_the_worst_vector(compressor, x, omega):
    assert compressor.bound(len(x)).omega == pytest.approx(omega)
    assert float(moments(compressor, x)[1]) == pytest.approx(omega, rel=0.05)


def test_rand_k_that_is_no_projection_is_no_contraction():
    assert isinstance(RandK(0.1, unbiased=True).bound(100), Variance)
    assert RandK(0.1).bound(100) == Contraction(0.1)
