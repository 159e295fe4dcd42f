"""Methods that are one another where they should be: with momentum zero, one worker, one step in a round, or equal Hessians."""

import numpy as np
import pytest
import torch

from disttrain.strategies import DiLoCo, OneBehind, OverlapLocalSGD, PredictedMean
from disttrain.strategies.local_updates import Clip, OuterStep, Penalty
from tests.strategies.local_updates.drive import GAMMA, begun, close, layout_of, local_step, quadratic, recorded, run, start

N, D, PERIOD = 3, 8, 4
SIZES = {"a.w": 2, "b.w": 3, "c.w": 2, "d.w": 1}
ENDS = [11, 12]  # in mid-round, and with a round
HEAVY_BALL, NESTEROV = OuterStep(0.9, 0.5), OuterStep(0.7, 0.6, nesterov=True)


def results(strategy, gradient, n=N, steps=11, seed=0):
    return run(strategy, gradient, start(seed, D), n, steps, layout=layout_of(SIZES))


def same(one, other, gradient=None, n=N, steps=11):
    """Whether two strategies keep all workers equal, step by step, and end alike."""
    gradient = gradient or quadratic(1, n, D)
    (trace, result), (other_trace, other_result) = results(one, gradient, n, steps), results(other, gradient, n, steps)
    return close(trace, other_trace) and close(result, other_result)


def torch_sgd(gradient, steps, momentum):
    """torch.optim.SGD on the workers' mean gradient: its x after every step, ``[steps, d]``."""
    x = torch.nn.Parameter(torch.from_numpy(start(0, D)).clone())
    optimizer, trace = torch.optim.SGD([x], GAMMA, momentum=momentum), []
    for step in range(1, steps + 1):
        x.grad = torch.from_numpy(np.mean([gradient(worker, step, x.detach().numpy()) for worker in range(N)], axis=0))
        optimizer.step()
        trace.append(x.detach().numpy().copy())
    return np.array(trace)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_slowmo_after_every_step_is_momentum_sgd(beta):
    gradient = quadratic(0, N, D)
    trace, result = results(DiLoCo(1, OuterStep(1.0, beta)), gradient)
    expected = torch_sgd(gradient, 11, beta)
    assert close(trace, np.repeat(expected[:, None], N, axis=1))
    assert close(result, expected[-1])


def test_local_sgd_after_every_step_is_ddp():
    gradient = quadratic(0, N, D)
    found = results(DiLoCo(1, OuterStep()), gradient)[0]
    assert close(found, np.repeat(torch_sgd(gradient, 11, 0.0)[:, None], N, axis=1))
    always = DiLoCo(3, OuterStep(), warmup_steps=12)
    assert close(results(always, gradient)[0], found)


@pytest.mark.parametrize("steps", ENDS)
def test_slowmo_and_diloco_without_momentum_are_local_sgd(steps):
    local_sgd = DiLoCo(PERIOD, OuterStep())
    assert same(DiLoCo(PERIOD, OuterStep(1.0, 0.0)), local_sgd, steps=steps)
    assert same(DiLoCo(PERIOD, OuterStep(1.0, 0.0, nesterov=True)), local_sgd, steps=steps)
    assert not same(DiLoCo(PERIOD, OuterStep(1.0, 0.1)), local_sgd, steps=steps)
    trace, result = results(local_sgd, quadratic(1, N, D), steps=steps)
    assert close(result, trace[-1].mean(0))


@pytest.mark.parametrize("steps", ENDS)
def test_streaming_diloco_in_one_piece_and_at_once_is_diloco(steps):
    assert same(DiLoCo(PERIOD, NESTEROV, delay=0, mix=0.0, fragments=1), DiLoCo(PERIOD, NESTEROV), steps=steps)
    assert not same(DiLoCo(PERIOD, NESTEROV, delay=1), DiLoCo(PERIOD, NESTEROV), steps=steps)
    assert not same(DiLoCo(PERIOD, NESTEROV, mix=0.5), DiLoCo(PERIOD, NESTEROV), steps=steps)
    assert not same(DiLoCo(PERIOD, NESTEROV, fragments=2), DiLoCo(PERIOD, NESTEROV), steps=steps)


@pytest.mark.parametrize("delay", [0, 2])
def test_workers_who_mix_nothing_in_never_hear_of_each_other(delay):
    gradient = quadratic(0, N, D)
    trace, _ = results(DiLoCo(PERIOD, NESTEROV, delay, mix=1.0, fragments=3), gradient)
    for worker in range(N):
        x = start(0, D)
        for step in range(11):
            x = x - GAMMA * gradient(worker, step + 1, x)
            assert close(trace[step, worker], x)


@pytest.mark.parametrize("steps", ENDS)
def test_eager_diloco_of_one_worker_is_diloco(steps):
    """All of the mean is fresh; and so without momentum of Nesterov's."""
    for outer in (NESTEROV, HEAVY_BALL):
        assert same(OneBehind(PERIOD, outer, "share"), DiLoCo(PERIOD, outer), n=1, steps=steps)
        assert not same(OneBehind(PERIOD, outer, "share"), DiLoCo(PERIOD, outer), n=2, steps=steps)


@pytest.mark.parametrize("clip", [Clip(), Clip(0.05), Clip(0.2, "norm")])
@pytest.mark.parametrize("fresh", ["wait", "share", "keep"])
def test_methods_whose_rounds_are_all_waited_for_are_slowmo(fresh, clip):
    outer = OuterStep(0.9, 0.5, clip=clip)
    assert same(OneBehind(PERIOD, outer, fresh, warmup_rounds=3), DiLoCo(PERIOD, outer), steps=12)
    assert not same(OneBehind(PERIOD, outer, fresh, warmup_rounds=2), DiLoCo(PERIOD, outer), steps=12)


@pytest.mark.parametrize("steps", ENDS)
def test_cocods_mean_is_local_sgds_where_hessians_are_equal(steps):
    gradient = quadratic(0, N, D, equal_hessians=True)
    trace, result = results(OneBehind(PERIOD, OuterStep(), "keep"), gradient, steps=steps)
    expected_trace, expected = results(DiLoCo(PERIOD, OuterStep()), gradient, steps=steps)
    assert close(trace.mean(1), expected_trace.mean(1))
    assert close(result, expected)
    assert not close(trace, expected_trace)  # the workers themselves are apart


@pytest.mark.parametrize("steps", ENDS)
@pytest.mark.parametrize("outer", [HEAVY_BALL, NESTEROV, OuterStep(1.3)])
def test_keeping_the_fresh_delta_leaves_the_mean_without_delay_where_hessians_are_equal(outer, steps):
    gradient = quadratic(0, N, D, equal_hessians=True)
    trace, result = results(OneBehind(PERIOD, outer, "keep"), gradient, steps=steps)
    expected_trace, expected = results(DiLoCo(PERIOD, outer), gradient, steps=steps)
    assert close(trace.mean(1), expected_trace.mean(1))
    assert close(result, expected)
    assert not close(results(OneBehind(PERIOD, outer, "wait"), gradient, steps=steps)[0].mean(1), expected_trace.mean(1))


def test_keeping_the_fresh_delta_alone_is_no_delay_at_all():
    for outer in (HEAVY_BALL, NESTEROV, OuterStep(0.9, 0.5, clip=Clip(0.05)), OuterStep(0.9, 0.5, clip=Clip(0.1, "norm"))):
        assert same(OneBehind(PERIOD, outer, "keep"), DiLoCo(PERIOD, outer), n=1)


ALL = {
    "diloco": lambda **warm: DiLoCo(PERIOD, NESTEROV, **warm),
    "streaming": lambda **warm: DiLoCo(PERIOD, NESTEROV, delay=2, mix=0.5, fragments=3, **warm),
    "co2": lambda **warm: OneBehind(PERIOD, HEAVY_BALL, "wait", Penalty("gap"), **warm),
    "eager": lambda **warm: OneBehind(PERIOD, NESTEROV, "share", **warm),
    "keep": lambda **warm: OneBehind(PERIOD, HEAVY_BALL, "keep", **warm),
    "overlap": lambda **warm: OverlapLocalSGD(PERIOD, HEAVY_BALL, **warm),
    "predicted": lambda **warm: PredictedMean(PERIOD, **warm),
}


def test_predicted_mean_with_all_rounds_waited_for_is_local_sgd():
    assert same(PredictedMean(PERIOD, warmup_rounds=3), DiLoCo(PERIOD, OuterStep()), steps=12)
    assert not same(PredictedMean(PERIOD, warmup_rounds=1), DiLoCo(PERIOD, OuterStep()), steps=12)


def test_a_mean_that_goes_straight_on_is_predicted_and_goes_at_full_speed():
    def gradient(worker, step, x):
        return np.arange(1.0, D + 1)

    trace, _ = results(PredictedMean(PERIOD, pull=0.6, smoothing=0.5), gradient, steps=400)
    assert np.allclose(trace[-1 - PERIOD].mean(0) - trace[-1].mean(0), GAMMA * PERIOD * gradient(0, 0, None))


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("warmup_steps", [1, 4, 6])
def test_after_the_warmup_a_run_is_one_that_begins_there(method, warmup_steps):
    gradient = recorded(0, N, 20, D)
    trace, result = results(ALL[method](warmup_steps=warmup_steps), gradient, steps=20)
    averaged = torch_sgd(gradient, warmup_steps, 0.0)
    assert close(trace[:warmup_steps], np.repeat(averaged[:, None], N, axis=1))
    later = run(
        ALL[method](), lambda worker, step, x: gradient(worker, step + warmup_steps, x), averaged[-1], N, 20 - warmup_steps,
        layout=layout_of(SIZES),
    )  # fmt: skip
    assert close(trace[warmup_steps:], later[0])
    assert close(result, later[1])


@pytest.mark.parametrize("method", ALL)
def test_an_anchor_in_float32_holds_what_bf16_parameters_cannot(method):
    """A delta of a few hundredths of a parameter's own spacing, averaged over workers, is in the anchor."""
    strategy = begun(ALL[method](), N, np.ones(D), layout_of(SIZES), dtype=torch.bfloat16)
    for step in range(1, 13):
        local_step(strategy, recorded(0, N, 12, D), step, gamma=0.02)
    assert strategy.x.dtype == torch.bfloat16
    assert strategy.anchor.dtype == strategy.momentum.dtype == torch.float32
    assert (strategy.anchor != strategy.anchor.bfloat16()).any()
    assert strategy.evaluation().dtype == strategy.finish().dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["diloco", "co2", "keep"])
def test_workers_that_stand_still_do_not_move_the_anchor(method):
    """What bf16 rounds off an anchor is nobody's progress."""
    strategy = begun(ALL[method](), N, np.ones(D), layout_of(SIZES), dtype=torch.bfloat16)
    strategy.anchor += 1e-3 * torch.rand(1, D)
    strategy.x.copy_(strategy.anchor)
    if len(getattr(strategy, "start", ())):
        strategy.start.copy_(strategy.x)
    before = strategy.anchor.clone()
    for _ in range(12):
        strategy.after_step()
    strategy.finish()
    assert torch.equal(strategy.anchor, before)


@pytest.mark.parametrize("method", ALL)
def test_weights_loaded_before_the_first_step_are_where_the_first_round_begins(method):
    gradient = recorded(0, N, 12, D)
    expected = run(ALL[method](), gradient, np.full(D, 5.0), N, 12, layout=layout_of(SIZES))
    strategy = begun(ALL[method](), N, np.zeros(D), layout_of(SIZES))
    strategy.x.fill_(5.0)
    for step in range(1, 13):
        local_step(strategy, gradient, step)
        assert close(strategy.x.numpy(), expected[0][step - 1])
    assert close(strategy.finish().numpy()[0], expected[1])


def test_a_delta_that_lands_at_the_end_is_not_followed_by_a_round_of_nothing():
    """Period 4, delay 2: the exchange of step 8 lands at step 10, or at the end of a run of 8 or 9 steps."""
    gradient = recorded(0, N, 12, D)
    ends = [results(DiLoCo(4, NESTEROV, delay=2), gradient, steps=steps)[1] for steps in (8, 9, 10)]
    assert close(ends[0], ends[1])
    assert close(ends[0], ends[2])
    assert not close(ends[0], results(DiLoCo(4, NESTEROV, delay=2), gradient, steps=11)[1])
