"""Where outer steps with stale deltas converge; and that penalty and clip, which shall help there, do what they say."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from disttrain.strategies import CO2Config, DiLoCo, OneBehind, SlowMoConfig
from disttrain.strategies.local_updates import Clip, OuterStep, Penalty
from disttrain.strategies.local_updates.penalty import SAFETY, is_stable
from tests.strategies.local_updates.drive import begun, local_step

HALF, DILOCO = OuterStep(1.0, 0.5), OuterStep(0.7, 0.9, nesterov=True)


def co2(beta, **settings):
    return CO2Config(period=2, outer_momentum=beta, **{"penalty": "none"} | settings).build()


COLUMNS = {  # a strategy, of which order its recurrence is, and spectral radii at κ = 0.1, 0.3, 0.6, 0.95
    "SlowMo β=.5": (lambda: SlowMoConfig(period=2, outer_momentum=0.5).build(), 2, [0.707, 0.707, 0.707, 0.707]),
    "stale β=0": (lambda: co2(0.0), 2, [0.887, 0.548, 0.775, 0.975]),
    "stale β=.2": (lambda: co2(0.2), 2, [0.845, 0.707, 0.894, 1.072]),
    "stale β=.5": (lambda: co2(0.5), 2, [0.775, 0.894, 1.049, 1.204]),
    "stale β=.5, Λ=2": (lambda: co2(0.5, penalty="constant", penalty_value=2.0), 2, [0.862, 0.806, 0.894, 0.987]),
    "DiLoCo": (lambda: DiLoCo(2, DILOCO), 2, [0.915, 0.843, 0.722, 0.549]),
    "DiLoCo stale": (lambda: OneBehind(2, DILOCO), 3, [0.952, 0.983, 1.095, 1.261]),
    "ours β=.5": (lambda: OneBehind(2, HALF, "keep"), 2, [0.707, 0.707, 0.707, 0.707]),
}
CASES = [
    pytest.param(make, order, kappa, radius, id=f"{name} κ={kappa}")
    for name, (make, order, radii) in COLUMNS.items()
    for kappa, radius in zip([0.1, 0.3, 0.6, 0.95], radii, strict=True)
]


def errors(strategy, kappa, rounds):
    """The anchors' distance from the optimum at the rounds' ends, where two local steps shrink it to 1 − κ times itself."""
    begun(strategy, 2, np.ones(1))
    anchors = []
    for step in range(1, 2 * rounds + 1):
        local_step(strategy, lambda worker, step, x: x, step, gamma=1 - (1 - kappa) ** 0.5)
        if step % 2 == 0:
            anchors.append(strategy.anchor.item())
    return np.array(anchors)


def growth(e, order):
    """The largest root of the linear recurrence that a sequence obeys: by how much it grows from one entry to the next."""
    history = np.stack([e[order - 1 - back : len(e) - 1 - back] for back in range(order)], axis=1)
    scale = np.abs(history).max(1)  # else the first entries of one that shrinks are all that counts
    coefficients = np.linalg.lstsq(history / scale[:, None], e[order:] / scale, rcond=None)[0]
    return np.abs(np.roots([1, *-coefficients])).max()


@pytest.mark.parametrize(("make", "order", "kappa", "radius"), CASES)
def test_an_anchor_grows_by_the_spectral_radius_in_a_round(make, order, kappa, radius):
    assert growth(errors(make(), kappa, 12), order) == pytest.approx(radius, abs=6e-4)


@pytest.mark.parametrize(("make", "order", "kappa", "radius"), [case for case in CASES if abs(case.values[3] - 1) > 0.02])
def test_in_the_long_run_it_vanishes_or_explodes_accordingly(make, order, kappa, radius):
    e = np.abs(errors(make(), kappa, 200))
    assert e[-5:].max() > 1e3 if radius > 1 else e[-5:].max() < 0.05


@given(st.floats(0.05, 3), st.floats(0, 0.95), st.floats(1, 4), st.floats(0.01, 1))
def test_the_bound_is_where_the_spectral_radius_is_one(alpha, beta, penalty, kappa):
    pull = alpha * kappa / penalty
    assume(abs(pull - (1 - beta)) > 1e-6)
    radius = np.abs(np.linalg.eigvals([[1 + beta, -(beta + pull)], [1, 0]])).max()
    assert is_stable(OuterStep(alpha, beta), penalty, kappa) == (radius < 1)


@given(st.floats(0.05, 3), st.floats(0, 0.95))
def test_the_stable_penalty_is_stable_in_the_worst_case_and_no_larger_than_it_says(alpha, beta):
    outer = OuterStep(alpha, beta)
    value = Penalty("stable")(torch.zeros(1, 1), lambda: torch.ones(1, 1), outer).item()
    assert is_stable(outer, value)
    assert value == pytest.approx(max(1, SAFETY * alpha / (1 - beta)))


# --- the penalty -----------------------------------------------------------------------------------------------------


def by_rounds(strategy, deltas, x0=(0.0, 0.0)):
    """The strategy after rounds of one step in which its two workers' x shrinks by ``deltas [rounds, n, d]``."""
    begun(strategy, len(deltas[0]), np.array(x0))
    for step, delta in enumerate(deltas, 1):
        local_step(strategy, lambda worker, step, x, delta=delta: np.array(delta[worker], dtype=float), step, gamma=1.0)
    return strategy


def test_the_gap_by_hand():
    """Means (3, 4), (0, 2) and (6, 8), each counted a round later; the anchor moves by 5, then by 2 / 3.5 through a Λ of 3.5."""
    rounds = [[[6, 8], [0, 0]], [[0, 0], [0, 4]], [[6, 8], [6, 8]]]
    strategy = by_rounds(CO2Config(period=1, outer_momentum=0.0).build(), rounds[:1])
    assert strategy.metrics["penalty"] == 1
    assert strategy.anchor.tolist() == [[0, 0]]
    strategy = by_rounds(CO2Config(period=1, outer_momentum=0.0).build(), rounds[:2])
    assert (strategy.metrics["penalty"], strategy.metrics["outer_step_norm"]) == (1, 5)
    assert strategy.anchor.tolist() == [[-3, -4]]
    strategy = by_rounds(CO2Config(period=1, outer_momentum=0.0).build(), rounds)
    assert (strategy.metrics["penalty"], strategy.metrics["outer_step_norm"]) == (3.5, 2 / 3.5)
    assert strategy.anchor.tolist() == [[-3, -4 - 2 / 3.5]]
    strategy.finish()
    assert strategy.metrics["penalty"] == pytest.approx(1 + (2 / 3.5) / 10)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"penalty": "none"}, 1.0),
        ({"penalty": "constant", "penalty_value": 2.5}, 2.5),
        ({"penalty": "stable"}, 1.5 * 1.4 / 0.8),
        ({"penalty": "gap"}, 1.0),
    ],
)
def test_a_penalty_divides_the_stale_delta(settings, expected):
    config = CO2Config(period=1, outer_lr=1.4, outer_momentum=0.2, **settings)
    strategy = by_rounds(config.build(), [[[3, 1], [1, 1]], [[0, 0], [0, 0]]])
    assert strategy.metrics["penalty"] == pytest.approx(expected)
    assert strategy.anchor.numpy() == pytest.approx(np.array([[-2, -1]]) * 1.4 / expected)


def test_a_stale_delta_of_zero_meets_no_gap():
    strategy = by_rounds(CO2Config(period=1).build(), [[[3.0, 1.0]], [[0, 0]], [[0, 0]], [[0, 0]]])
    assert strategy.metrics["penalty"] == 1
    assert strategy.anchor.isfinite().all()


def test_all_workers_have_one_penalty_and_restart_together():
    rng = np.random.default_rng(0)
    strategy = begun(CO2Config(period=3).build(), 4, rng.standard_normal(5))
    for step in range(1, 13):
        local_step(strategy, lambda worker, step, x: rng.standard_normal(5), step)
        together = bool((strategy.x == strategy.x[:1]).all())
        assert together == (step % 3 == 0)
    assert strategy._penalty.shape == (1, 1)
    assert strategy.metrics["penalty"] > 1


# --- the clip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "expected", "fraction"),
    [
        (Clip(None), [3.0, -4.0, 0.5, 0.0], 0.0),
        (Clip(1.0), [1.0, -1.0, 0.5, 0.0], 0.5),
        (Clip(3.0), [3.0, -3.0, 0.5, 0.0], 0.25),
        (Clip(1.0, "norm"), [3 / 25.25**0.5, -4 / 25.25**0.5, 0.5 / 25.25**0.5, 0.0], 1.0),
        (Clip(6.0, "norm"), [3.0, -4.0, 0.5, 0.0], 0.0),
    ],
)
def test_a_clip_changes_values_and_says_how_many(clip, expected, fraction):
    """The authors' code computes the clipped momentum and drops it."""
    strategy = by_rounds(DiLoCo(1, OuterStep(0.5, clip=clip)), [[[3.0, -4.0, 0.5, 0.0]] * 2], x0=np.zeros(4))
    assert strategy.anchor.numpy() == pytest.approx(-0.5 * np.array([expected]))
    assert strategy.metrics["fraction_clipped"] == fraction


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6), st.floats(0.01, 5), st.sampled_from(["value", "norm"]))
def test_a_clip_is_a_projection(values, threshold, mode):
    clip, direction = Clip(threshold, mode), torch.tensor([values], dtype=torch.float64)
    once, _ = clip(direction)
    length = once.abs().max() if mode == "value" else torch.linalg.vector_norm(once)
    assert length <= threshold * (1 + 1e-12)
    assert torch.allclose(clip(once)[0], once, rtol=1e-12)
    assert (once * direction >= 0).all()


def test_norms_are_clipped_row_by_row():
    clipped, beyond = Clip(1.0, "norm")(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]))
    assert torch.allclose(clipped, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert beyond.tolist() == [[1.0], [0.0], [0.0]]


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_itself_is_not_clipped(nesterov):
    """Only the step is: the same momentum, clipped or not, after two of them."""
    deltas = [torch.tensor([[3.0, -0.1]]), torch.tensor([[1.0, 0.2]])]
    momenta = []
    for clip in (Clip(), Clip(0.5)):
        outer, momentum = OuterStep(1.0, 0.5, nesterov, clip), torch.zeros(1, 2)
        for delta in deltas:
            move, momentum = outer(delta, momentum)
        momenta.append(momentum)
    assert torch.equal(*momenta)
    assert move.abs().max() == 0.5


def test_clipping_does_not_stop_oscillation_but_bounds_it():
    """Beyond the boundary an unclipped anchor explodes; a clipped one stays within some steps of the optimum."""
    clipped = np.abs(errors(co2(0.5, clip=0.1), 0.95, 200))
    assert clipped[-50:].max() < 3
    assert np.abs(errors(co2(0.5), 0.95, 200))[-1] > 1e6
