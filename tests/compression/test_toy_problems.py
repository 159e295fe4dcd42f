"""The papers' smallest problems, with the constants that can be worked out by hand.

(a) three workers on which top-1 without feedback diverges (Beznosikov et al., arXiv 2002.12410, example 1), and with linear
terms; (b) noise that EF21 keeps at any number of workers (arXiv 2305.15155, theorem 1); (c) least squares of workers that
disagree (Koloskova et al.), on which EF14 stalls.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch

from disttrain.compression import EF14, EF21, EF21SGDM, EF21W, Cast, EControl, Feedback, Int8, ScaledSign, TopK, ef21_step_size
from disttrain.strategies import Compressed
from tests.compression.drive import begun, descend, step
from tests.compression.vectors import gaussian
from tests.reference import compressors as plain
from tests.reference import error_feedback as reference

FP64 = Cast("fp64")
TOP_1 = TopK(1 / 3, FP64)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- (a) fᵢ = ⟨aᵢ, x⟩² + ‖x‖²/4 + ⟨bᵢ, x⟩, the minimum at 0 -----------------------------------------------------------

A = doubles([-3, 2, 2], [2, -3, 2], [2, 2, -3])
B = doubles([10, -4, 0], [-6, 10, -2], [-4, -6, 2])  # sums to 0
L, L_EACH, MU = 50 / 3 + 1 / 2, 34.5, 7 / 6
EF21_STEP = ef21_step_size(L, 3 * [L_EACH], 1 / 3)
THETA, BETA = 1 - math.sqrt(2 / 3), 2 / 3 / (1 - math.sqrt(2 / 3))
STRONGLY_CONVEX_STEP = 1 / (L + L_EACH * math.sqrt(2 * BETA / THETA))  # arXiv 2106.05203, theorem 2
ONES = doubles(1, 1, 1)


def agreeing(x):
    return 2 * A * (A @ x)[:, None] + x / 2


def disagreeing(x):
    return agreeing(x) + B


def test_constants_of_the_three_workers():
    curvature = 2 * A.T @ A / 3 + torch.eye(3, dtype=torch.float64) / 2
    eigenvalues = torch.linalg.eigvalsh(curvature)
    assert [float(eigenvalues[0]), float(eigenvalues[-1])] == pytest.approx([MU, L])
    assert agreeing(2 * ONES)[0].tolist() == [-11, 9, 9]
    assert B.sum(0).count_nonzero() == 0
    assert pytest.approx([0.0058591, 0.0042688], abs=1e-7) == [EF21_STEP, STRONGLY_CONVEX_STEP]


@pytest.mark.parametrize(("gamma", "growth", "steps"), [(0.01, 1.018333, 761), (1 / L, 1.106796, 137)])
def test_top_1_without_feedback_grows_by_1_and_eleven_sixths_of_gamma_in_every_step(gamma, growth, steps):
    way = descend(begun(3, 3, TOP_1, Feedback()), agreeing, ONES, gamma, steps)
    assert (way[1:] / way[:-1] - (1 + 11 * gamma / 6)).abs().max() < 1e-12
    assert 1 + 11 * gamma / 6 == pytest.approx(growth, abs=1e-6)
    assert way[-1, 0] >= 1e6 > way[-2, 0]


@pytest.mark.parametrize("feedback", [EF14(), EF21(), EControl(), EF21SGDM(0.5)], ids=lambda f: type(f).__name__)
def test_feedback_converges_where_top_1_alone_grows(feedback):
    way = descend(begun(3, 3, TOP_1, feedback, warmup_steps=1), agreeing, ONES, EF21_STEP, 600)
    assert way[-1].norm() / way[-301].norm() == pytest.approx((1 - EF21_STEP * MU) ** 300, rel=0.05)


def test_ef14_stalls_where_workers_disagree_and_ef21_and_econtrol_do_not():
    stalled = descend(begun(3, 3, TOP_1, EF14(), warmup_steps=1), disagreeing, ONES, STRONGLY_CONVEX_STEP, 1500)[-1]
    assert 5e-3 < stalled.norm() < 5e-2  # it cycles
    for feedback in (EF21(), EControl()):
        exact = descend(begun(3, 3, TOP_1, feedback, warmup_steps=1), disagreeing, ONES, 4 * EF21_STEP, 1000)[-1]
        assert exact.norm() < 1e-10


@pytest.mark.parametrize("method", [reference.EF14, reference.EF21, partial(reference.EControl, eta=1 / 3)])
def test_and_so_they_do_at_the_step_size_of_theory(method):
    start = disagreeing(ONES).numpy()
    last = np.linalg.norm(reference.descend(method(top_1, start), disagreeing_numpy, np.ones(3), STRONGLY_CONVEX_STEP, 8000)[-1])
    assert 5e-3 < last < 5e-2 if method is reference.EF14 else last < 1e-15


@pytest.mark.parametrize("eta", [1 / 30, 1 / 1200])
def test_econtrol_with_a_small_eta_is_slow(eta):
    """e drains like (1 − η)ᵗ: a thirtieth is enough within 5,000 steps, the paper's δ / 400 is not."""
    method = reference.EControl(top_1, disagreeing(ONES).numpy(), eta)
    last = np.linalg.norm(reference.descend(method, disagreeing_numpy, np.ones(3), STRONGLY_CONVEX_STEP, 8000)[-1])
    assert last < 1e-10 if eta > 0.01 else 1e-7 < last < 1e-4


def top_1(x):
    places = np.abs(x).argmax(-1)
    return np.where(np.arange(x.shape[-1]) == places[:, None], x, 0.0)


def disagreeing_numpy(x):
    a = A.numpy()
    return 2 * a * (a @ x)[:, None] + x / 2 + B.numpy()


def test_an_eta_beyond_the_guard_diverges_and_is_refused():
    """δ = 1/3 and η = 1 on the three workers, with any step size; δ = .1 and η = .5 on least squares, below."""
    for gamma in (0.001, STRONGLY_CONVEX_STEP, EF21_STEP, 1 / L):
        method = reference.EControl(top_1, agreeing(ONES).numpy(), 1.0)
        with np.errstate(all="ignore"):
            way = reference.descend(method, lambda x: disagreeing_numpy(x) - B.numpy(), np.ones(3), gamma, 3000)
            assert not np.linalg.norm(way[-1]) < 1e6
    with pytest.raises(ValueError, match=r"eta=1 feeds back more than the compressor can send.* eta ≤ 2δ = 0.6667"):
        Compressed(TOP_1, EControl(1.0))
    assert Compressed(TOP_1, EControl(2 / 3)).mean.feedback == EControl(2 / 3)
    assert Compressed(TOP_1, EControl()).mean.feedback == EControl(1 / 3)


def estimates_error(strategy, g, weights):
    """Σ ‖hᵢ − gᵢ‖² / wᵢ / n²: with equal weights the mean square."""
    return float(((strategy.local["estimate"] - g).square().sum(-1) / weights).sum() / len(g) ** 2)


@pytest.mark.parametrize("mean", ["quadratic", "arithmetic"])
@pytest.mark.parametrize("problem", ["three workers", "least squares"])
def test_ef21_s_lyapunov_function_never_rises_at_the_step_size_of_theory(mean, problem):
    """f − f* + γ/2θ · G, which falls by γ/2 · ‖∇f‖² at least; with the arithmetic mean G is weighted by 1 / Lᵢ."""
    if problem == "three workers":
        smoothness, each, gradient, x, compressor = L, 3 * [L_EACH], disagreeing, ONES, TOP_1
        f = lambda x: float((A @ x).square().mean() + x.square().sum() / 4)  # noqa: E731
    else:
        squares = LeastSquares()
        smoothness, each, gradient, x, compressor = squares.L, squares.each.tolist(), squares.gradient, squares.start, TENTH
        f = squares.excess
    delta = compressor.bound(len(x)).delta
    theta = 1 - math.sqrt(1 - delta)
    gamma = ef21_step_size(smoothness, each, delta, mean)
    weights = doubles(*each) / sum(each) if mean == "arithmetic" else torch.full((len(each),), 1 / len(each)).double()
    strategy, before = begun(len(each), len(x), compressor, EF21(), warmup_steps=1), math.inf
    for _ in range(400):
        g = gradient(x)
        seen = step(strategy, g)
        psi = f(x) + gamma / (2 * theta) * estimates_error(strategy, g, weights)
        assert psi <= before * (1 + 1e-12)
        before = psi - gamma / 2 * float(g.mean(0).square().sum()) + 1e-12 * psi
        x = x - gamma * seen


@pytest.mark.parametrize("compressor", [TOP_1, ScaledSign(3), Int8(3)], ids=str)
def test_ef14_s_virtual_iterate_is_exact_gradient_descent(compressor):
    """z = x − γ · mean e moves by −γ · mean ∇fᵢ(x), to rounding, whatever the compressor."""
    strategy, x, gamma = begun(3, 3, compressor, EF14()), ONES, EF21_STEP
    z = x
    for _ in range(300):
        z = z - gamma * disagreeing(x).mean(0)
        x = x - gamma * step(strategy, disagreeing(x))
        torch.testing.assert_close(x - gamma * strategy.local["error"].mean(0), z, rtol=0, atol=1e-12)
    assert (x - z).norm() > 1e-6


def test_weights_change_nothing_where_the_compressor_scales_and_something_where_it_does_not():
    smoothness, x = (1.0, 20.0, 4.0), doubles(1, 0.5, -0.2)  # no ties, which rounding would decide
    same = {}
    for name, compressor in (("top_k", TOP_1), ("sign", ScaledSign(3)), ("int8", Int8(3))):
        ways = [
            descend(begun(3, 3, compressor, feedback, warmup_steps=1), disagreeing, x, EF21_STEP, 60)
            for feedback in (EF21(), EF21W(smoothness))
        ]
        same[name] = float((ways[0] - ways[1]).abs().max())
    assert same["top_k"] < 2e-14
    assert same["sign"] < 1e-6  # its scales are float32
    assert same["int8"] > 3e-6


def test_the_arithmetic_mean_allows_a_larger_step():
    """Lᵢ of which the means are 5.42 and 6.77: with n = 20 workers a gain of 1.249 at most, of √n in the worst case."""
    spread = math.sqrt(6.77**2 - 5.42**2)
    each = 10 * [5.42 - spread] + 10 * [5.42 + spread]
    gain = ef21_step_size(1.7, each, 0.1) / ef21_step_size(1.7, each, 0.1, "quadratic")
    assert gain == pytest.approx(1.245, abs=1e-3)
    one_steep = 99 * [1e-9] + [1.0]
    gain = ef21_step_size(1e-9, one_steep, 0.01) / ef21_step_size(1e-9, one_steep, 0.01, "quadratic")
    assert gain == pytest.approx(math.sqrt(100), rel=1e-3)


@pytest.mark.parametrize("delta", [0.01, 0.1, 1 / 3, 1.0])
def test_the_step_size_is_the_formula(delta):
    each = [1.0, 4.0, 9.0]
    theta = 1 - math.sqrt(1 - delta)
    xi = math.sqrt((1 - delta) / theta / theta)  # √(β/θ)
    quadratic, arithmetic = (ef21_step_size(3.0, each, delta, mean) for mean in ("quadratic", "arithmetic"))
    assert quadratic == pytest.approx(1 / (3 + math.sqrt(98 / 3) * xi))
    assert arithmetic == pytest.approx(1 / (3 + 14 / 3 * xi))
    assert arithmetic > quadratic or delta == 1
    assert ef21_step_size(3.0, [2.0, 2.0], delta) == pytest.approx(ef21_step_size(3.0, [2.0, 2.0], delta, "quadratic"))


# --- (b) f = ‖x‖²/2 in the plane; noise √.3 · z, z one of (2, 0), (0, 1), (−2, −1), of mean 0 and variance σ² = 1 -----

CORNERS = np.array([[2.0, 0.0], [0.0, 1.0], [-2.0, -1.0]]) * math.sqrt(0.3)


def noise(n, steps, seed=0):
    return CORNERS[np.random.default_rng(seed).integers(0, 3, size=(steps, n))]


def test_top_1_of_that_noise_has_a_mean_of_a_thirtieth():
    assert (CORNERS**2).sum(-1).mean() == pytest.approx(1.0)
    assert top_1(CORNERS).mean(0) == pytest.approx([0.0, math.sqrt(1 / 30)])


@pytest.mark.parametrize("n", [1, 10, 100])
def test_compressing_the_noise_alone_leaves_sigma_squared_over_thirty_whatever_the_number_of_workers(n):
    """And beside it what any stochastic descent leaves: γ / (2 − γ) of the variance of one worker's step, by n."""
    expected = 1 / 30 + 0.01 / 1.99 * (0.9 - 1 / 30) / n
    x, squares = np.array([0.0, -1.0]), []
    for each in noise(n, 20_000):
        x = x - 0.01 * (x + top_1(each).mean(0))
        squares.append(x @ x)
    assert np.mean(squares[1000:]) == pytest.approx(expected, rel=0.02)


def test_and_so_it_does_in_the_strategy():
    strategy, x, squares = begun(100, 2, TopK(0.5, FP64), Feedback()), doubles(0, -1), []
    for each in torch.from_numpy(noise(100, 1500)):
        x = x - 0.01 * (x + step(strategy, each))
        squares.append(float(x.square().sum()))
    assert np.mean(squares[700:]) == pytest.approx(1 / 30, rel=0.05)


NOISY = {
    "sgd": (lambda g0: reference.Naive(lambda x: x, g0), {1: 4.0e-4, 10: 5.4e-5, 100: 6.9e-6}),
    "ef14": (lambda g0: reference.EF14(top_1, g0), {100: 6.9e-6}),
    "ef21": (lambda g0: reference.EF21(top_1, g0), {1: 4.0e-3, 100: 9.6e-4}),
    "ef21_sgdm": (lambda g0: reference.EF21SGDM(top_1, g0, 0.01), {100: 2.6e-6}),
    "econtrol": (lambda g0: reference.EControl(top_1, g0, 0.05), {1: 4.0e-4, 10: 5.3e-5, 100: 7.0e-6}),
}


def noise_left(name, n, gamma=1e-3, steps=10_000):
    """Mean ‖∇f‖² over the last 2,000 of 10,000 steps, from (0, −.01)."""
    x, squares = np.array([0.0, -0.01]), []
    draws = noise(n, steps)
    method = NOISY[name][0](x + draws[0])
    for each in draws:
        x = x - gamma * method.step(x + each)
        squares.append(x @ x)
    return np.mean(squares[-2000:])


def test_more_workers_help_all_but_ef21():
    left = {(name, n): noise_left(name, n) for name, (_, sizes) in NOISY.items() for n in sizes}
    for name, (_, sizes) in NOISY.items():
        for n, expected in sizes.items():
            assert expected / 2.5 < left[name, n] < expected * 2.5, (name, n)
    assert left["ef21", 100] > 50 * left["sgd", 100]
    for name in ("ef14", "ef21_sgdm", "econtrol"):
        assert left[name, 100] < 3 * left["sgd", 100]
    for name in ("sgd", "econtrol"):  # a hundred workers, a hundredth of the noise
        assert 30 < left[name, 1] / left[name, 100] < 200


def test_more_workers_help_all_but_ef21_in_the_strategy():
    left = {}
    for name, feedback in (("ef14", EF14()), ("ef21", EF21()), ("econtrol", EControl(0.05))):
        strategy, x, squares = begun(100, 2, TopK(0.5, FP64), feedback, warmup_steps=1), doubles(0, -0.01), []
        for each in torch.from_numpy(noise(100, 500)):
            x = x - 0.02 * step(strategy, x + each)
            squares.append(float(x.square().sum()))
        left[name] = np.mean(squares[250:])
    assert left["ef21"] > 10 * left["ef14"]
    assert left["econtrol"] < 3 * left["ef14"]


# --- (c) fᵢ = ‖Aᵢx − bᵢ‖²/2, Aᵢ² = i²/n, bᵢ ~ N(0, ζ²/i²), ten workers and a hundred entries --------------------------

TENTH = TopK(0.1, FP64)


class LeastSquares:
    """ζ = 100; L = μ = 3.85."""

    def __init__(self, n=10, d=100, zeta=100.0):
        i = torch.arange(1, n + 1, dtype=torch.float64)[:, None]
        self.a, self.b = i / math.sqrt(n), gaussian(n, d) * zeta / i
        self.each = (self.a**2)[:, 0]
        self.L = float(self.each.mean())
        self.best = (self.a * self.b).sum(0) / (self.a**2).sum()
        self.start = torch.zeros(d, dtype=torch.float64)

    def gradient(self, x):
        return self.a * (self.a * x - self.b)

    def excess(self, x):
        return self.L / 2 * float((x - self.best).square().sum())

    def distance(self, way):
        """‖x − x*‖² / ‖x*‖², in the mean over the last fifty."""
        return float((way[-50:] - self.best).square().sum(-1).mean() / self.best.square().sum())


def test_constants_of_the_least_squares():
    problem = LeastSquares()
    assert pytest.approx(3.85) == problem.L
    assert float(problem.each.max()) == pytest.approx(10)
    assert float(problem.each.square().mean().sqrt()) == pytest.approx(5.033, abs=1e-3)
    assert problem.gradient(problem.best).mean(0).abs().max() < 1e-12


def test_ef14_s_distance_goes_by_the_step_size_squared_where_workers_disagree():
    problem, left = LeastSquares(), {}
    for share, steps in ((0.03, 500), (0.01, 1200)):
        way = descend(begun(10, 100, TENTH, EF14(), warmup_steps=1), problem.gradient, problem.start, share / problem.L, steps)
        left[share] = problem.distance(way)
    assert left[0.03] == pytest.approx(3.7e-3, rel=0.5)
    assert left[0.03] / left[0.01] == pytest.approx(9, rel=0.2)


@pytest.mark.parametrize("feedback", [EF21(), EControl(), EControl(0.025)], ids=str)
def test_ef21_and_econtrol_are_exact_where_workers_disagree(feedback):
    problem = LeastSquares()
    strategy = begun(10, 100, TENTH, feedback, warmup_steps=1)
    assert problem.distance(descend(strategy, problem.gradient, problem.start, 0.1 / problem.L, 800)) < 1e-18


def test_an_eta_of_five_deltas_diverges_on_least_squares_and_is_refused():
    problem = LeastSquares()
    gradient = lambda x: problem.gradient(torch.from_numpy(x)).numpy()  # noqa: E731
    C = lambda x: np.stack([plain.top_k(row, 10) for row in x])  # noqa: E731
    for share in (0.3, 0.03, 0.003):
        method = reference.EControl(C, gradient(problem.start.numpy()), 0.5)
        way = reference.descend(method, gradient, problem.start.numpy(), share / problem.L, 400)
        assert not np.linalg.norm(way[-1]) < 1e6
    with pytest.raises(ValueError, match=r"eta=0.5 feeds back more .* TopK has δ = 0.1, so take eta ≤ 2δ = 0.2"):
        Compressed(TENTH, EControl(0.5))


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("share", [0.3, 0.1])
def test_econtrol_with_the_scaled_sign_is_stable_at_its_default(block, share):
    """η = 1 / block. With η = 2/π, the share that Gaussian entries keep, the very same runs diverge."""
    problem = LeastSquares(d=128)
    strategy = begun(10, 128, ScaledSign(block), EControl(), warmup_steps=1)
    assert problem.distance(descend(strategy, problem.gradient, problem.start, share / problem.L, 600)) < 1e-5
    with pytest.raises(ValueError, match=r"eta=0.637 feeds back more"):
        Compressed(ScaledSign(block), EControl(0.637))


def test_econtrol_with_the_scaled_sign_on_the_three_workers():
    strategy = begun(3, 3, ScaledSign(3), EControl(), warmup_steps=1)
    assert descend(strategy, disagreeing, ONES, 1 / L, 600)[-1].norm() < 1e-10
