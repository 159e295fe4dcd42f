"""Every method of local updates is its paper's, after every step and at the end, wherever in a round that is."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.strategies import (
    CO2Config,
    CoCoDSGDConfig,
    DiLoCoConfig,
    EagerDiLoCoConfig,
    LocalSGDConfig,
    OverlapLocalSGDConfig,
    PredictedMeanConfig,
    SlowMoConfig,
    StreamingDiLoCoConfig,
)
from tests.reference import local_updates as reference
from tests.strategies.local_updates.drive import GAMMA, close, layout_of, quadratic, recorded, run, start

SIZES = {
    "embed.weight": 3,
    "blocks.0.a.w": 2,
    "blocks.0.b.w": 1,
    "blocks.1.a.w": 2,
    "blocks.2.a.w": 3,
    "head.weight": 2,
    "head.bias": 1,
}
LAYERS = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11, 12, 13], [14, 15, 16, 17]]  # with an alignment of 2
LAYOUT = layout_of(SIZES, alignment=2)
LR, MOMENTUM = st.sampled_from([0.4, 0.7, 1.0, 1.3]), st.sampled_from([0.0, 0.2, 0.5, 0.9])


def local_sgd(draw, period):
    return LocalSGDConfig(period=period), reference.local_sgd, {}


def post_local_sgd(draw, period):
    warmup_steps = draw(st.integers(0, 7))
    return LocalSGDConfig(period=period, warmup_steps=warmup_steps), reference.post_local_sgd, {"warmup_steps": warmup_steps}


def slowmo(draw, period):
    alpha, beta = draw(LR), draw(MOMENTUM)
    return SlowMoConfig(period=period, outer_lr=alpha, outer_momentum=beta), reference.slowmo, {"alpha": alpha, "beta": beta}


def diloco(draw, period):
    lr, momentum = draw(LR), draw(MOMENTUM)
    return DiLoCoConfig(period=period, outer_lr=lr, outer_momentum=momentum), reference.diloco, {"lr": lr, "momentum": momentum}


def streaming_diloco(draw, period):
    lr, momentum, mix = draw(LR), draw(MOMENTUM), draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    number, delay = draw(st.integers(1, min(5, period))), draw(st.integers(0, period - 1))
    config = StreamingDiLoCoConfig(period=period, outer_lr=lr, outer_momentum=momentum, fragments=number, delay=delay, mix=mix)
    parts = [(list(chain(*LAYERS[p::number])), p * period // number) for p in range(number)]
    return config, reference.streaming_diloco, {"lr": lr, "momentum": momentum, "fragments": parts, "delay": delay, "mix": mix}


def eager_diloco(draw, period):
    lr, momentum = draw(LR), draw(MOMENTUM)
    config = EagerDiLoCoConfig(period=period, outer_lr=lr, outer_momentum=momentum)
    return config, reference.eager_diloco, {"lr": lr, "momentum": momentum}


def overlap_local_sgd(draw, period):
    pull, gmf = draw(st.sampled_from([0.2, 0.6, 0.9])), draw(MOMENTUM)
    config = OverlapLocalSGDConfig(period=period, pull=pull, outer_momentum=gmf)
    return config, reference.overlap_local_sgd, {"pull": pull, "gmf": gmf}


def predicted_mean(draw, period):
    pull, beta, rounds = draw(st.sampled_from([0.3, 0.65, 1.0])), draw(st.sampled_from([0.0, 0.5, 0.7])), draw(st.integers(0, 3))
    config = PredictedMeanConfig(period=period, pull=pull, smoothing=beta, warmup_rounds=rounds)
    return config, reference.predicted_mean, {"pull": pull, "beta": beta, "warmup_rounds": rounds}


def cocod_sgd(draw, period):
    return CoCoDSGDConfig(period=period), reference.cocod_sgd, {}


def co2(draw, period):
    settings = {"penalty": draw(st.sampled_from(["none", "constant", "gap"])), "warmup_rounds": draw(st.integers(0, 3))}
    settings["clip"] = draw(st.sampled_from([None, 0.05, 0.2, 1.0]))
    alpha, beta = draw(LR), draw(MOMENTUM)
    value, mode = draw(st.sampled_from([1.5, 2.0])), draw(st.sampled_from(["value", "norm"]))
    needed = {"penalty_value": value} if settings["penalty"] == "constant" else {}
    needed |= {"clip_mode": mode} if settings["clip"] else {}
    config = CO2Config(period=period, outer_lr=alpha, outer_momentum=beta, **needed, **settings)
    return config, reference.co2, settings | {"alpha": alpha, "beta": beta, "value": value, "mode": mode}


METHODS = [local_sgd, post_local_sgd, slowmo, diloco, streaming_diloco, eager_diloco, overlap_local_sgd, cocod_sgd, co2]
METHODS += [predicted_mean]


def compare(config, method, options, gradient, n, steps, seed):
    x0 = start(seed, LAYOUT.d)
    trace, result = run(config.build(), gradient, x0, n, steps, layout=LAYOUT)
    expected_trace, expected_result = method(gradient, x0, n, steps, GAMMA, config.period, **options)
    assert close(trace, expected_trace)
    assert close(result, expected_result)


@pytest.mark.parametrize("method", METHODS, ids=lambda each: each.__name__)
@settings(max_examples=40)
@given(data=st.data(), n=st.integers(1, 5), period=st.integers(1, 6), steps=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_method_is_its_reference(method, data, n, period, steps, seed):
    config, plain, options = method(data.draw, period)
    gradients = {"recorded": recorded(seed, n, steps, LAYOUT.d), "quadratic": quadratic(seed, n, LAYOUT.d)}
    compare(config, plain, options, gradients[data.draw(st.sampled_from(sorted(gradients)))], n, steps, seed)


def co2_result(steps, **settings):
    """CO2 on recorded gradients with a period of 2: its result, and the reference's."""
    gradient, x0 = recorded(0, 3, steps, 4), start(0, 4)
    found = run(CO2Config(period=2, outer_lr=0.7, outer_momentum=0.2, **settings).build(), gradient, x0, 3, steps)[1]
    named = {"value": settings.pop("penalty_value", 1.0)} | settings
    return found, reference.co2(gradient, x0, 3, steps, GAMMA, 2, 0.7, 0.2, **named)[1]


def test_co2s_last_round_is_measured_from_where_it_began_not_from_what_lands_meanwhile():
    assert close(*co2_result(3, penalty="none"))


def test_co2s_first_delta_after_synchronous_rounds_meets_no_gap():
    """Between the last synchronous round and it the anchor has not moved."""
    assert close(*co2_result(6, penalty="gap", warmup_rounds=1))


def test_co2_does_not_penalise_a_synchronous_round_that_ends_early():
    assert close(*co2_result(3, penalty="constant", penalty_value=2.0, warmup_rounds=2))


def test_references_differ_from_one_another():
    """Else all that agrees with one of them would agree with another, and show little."""
    gradient, x0 = quadratic(0, 3, LAYOUT.d), start(0, LAYOUT.d)
    options = {"slowmo": {"alpha": 1.0, "beta": 0.5}, "diloco": {"lr": 0.7, "momentum": 0.9}}
    options |= {"streaming_diloco": {"lr": 0.7, "momentum": 0.9, "fragments": [([0, 1], 0), (list(range(2, 18)), 2)], "delay": 1}}
    options |= {"eager_diloco": {"lr": 0.7, "momentum": 0.5}, "overlap_local_sgd": {"pull": 0.6, "gmf": 0.7}}
    options |= {"predicted_mean": {"pull": 0.6, "beta": 0.7}}
    options |= {"post_local_sgd": {"warmup_steps": 2}, "co2": {"alpha": 1.0, "beta": 0.5}}
    names = [method.__name__ for method in METHODS]
    traces = [getattr(reference, name)(gradient, x0, 3, 13, GAMMA, 4, **options.get(name, {}))[0][-1] for name in names]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(traces) for b in traces[:i])
