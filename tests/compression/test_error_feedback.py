"""Every feedback is the papers' few lines; and whatever goes wrong, no state is lost, spoilt or forgotten."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.compression import (
    EF14,
    EF21,
    EF21SGDM,
    EF21W,
    QSGD,
    BlockTopK,
    Cast,
    EControl,
    Feedback,
    Identity,
    Int8,
    RandK,
    ScaledSign,
    TopK,
    ef21_step_size,
)
from disttrain.strategies import Compressed
from tests.compression.drive import begun, step
from tests.compression.vectors import FP32, gaussian
from tests.reference import compressors as plain
from tests.reference import error_feedback as reference

FP64 = Cast("fp64")
SMOOTHNESS = (1.0, 2.0, 5.0, 0.5)
N, D = 4, 30


def top_k(x):
    return np.stack([plain.top_k(row, round(0.2 * D)) for row in x])


def block_top_k(x):
    return np.stack([plain.block_top_k(row, 1, 8) for row in x])


def int8(x):
    return np.stack([plain.int8(row, 16) for row in x])


def weights(smoothness):
    return np.array(smoothness) / sum(smoothness)


FEEDBACKS = {
    "none": (Feedback(), reference.Naive),
    "ef14": (EF14(), reference.EF14),
    "ef21": (EF21(), reference.EF21),
    "ef21_sgdm": (EF21SGDM(0.3), lambda C, g0: reference.EF21SGDM(C, g0, 0.3)),
    "econtrol": (EControl(0.15), lambda C, g0: reference.EControl(C, g0, 0.15)),
    "ef21_w": (EF21W(SMOOTHNESS), lambda C, g0: reference.EF21W(C, g0, weights(SMOOTHNESS))),
}
every = pytest.mark.parametrize("name", FEEDBACKS)
with_states = pytest.mark.parametrize("name", [name for name in FEEDBACKS if name != "none"])
few = settings(max_examples=8)


def gradients(seed, steps=12, n=N, d=D, dtype=torch.float64):
    return gaussian(steps, n, d, seed=seed, dtype=dtype) + gaussian(n, d, seed=seed + 1, dtype=dtype)


def states(strategy):
    return {kind: each.clone() for kind, each in (strategy.local | strategy.shared).items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[kind], theirs[kind]) for kind in ours)


@every
@pytest.mark.parametrize(
    ("compressor", "C"), [(TopK(0.2, FP64), top_k), (BlockTopK(1, 8, FP64), block_top_k)], ids=["top_k", "block_top_k"]
)
@few
@given(seed=st.integers(0, 2**32))
def test_it_is_the_reference(name, compressor, C, seed):
    feedback, build = FEEDBACKS[name]
    g = gradients(seed)
    ours, theirs = begun(N, D, compressor, feedback, warmup_steps=1), build(C, g[0].numpy())
    np.testing.assert_allclose(step(ours, g[0]), g[0].numpy().mean(0), rtol=0, atol=1e-14)
    for each in g[1:]:
        np.testing.assert_allclose(step(ours, each), theirs.step(each.numpy()), rtol=0, atol=1e-12)


@every
def test_it_is_the_reference_in_float32(name):
    """Int8's grid jumps where float32 sees the other side of a half; top-k does not."""
    feedback, build = FEEDBACKS[name]
    g = gradients(3, steps=40)
    ours = begun(N, D, TopK(0.2, FP32), feedback, warmup_steps=1, dtype=torch.float32)
    theirs = build(top_k, g[0].numpy())
    step(ours, g[0].float())
    for each in g[1:]:
        np.testing.assert_allclose(step(ours, each.float()), theirs.step(each.numpy()), rtol=0, atol=3e-5)


@every
def test_states_begin_at_zero_without_a_warmup(name):
    feedback, build = FEEDBACKS[name]
    g = gradients(1)
    ours, theirs = begun(N, D, TopK(0.2, FP64), feedback), build(top_k, np.zeros((N, D)))
    for each in g:
        np.testing.assert_allclose(step(ours, each), theirs.step(each.numpy()), rtol=0, atol=1e-12)


def test_gradients_of_half_precision_have_states_in_float32():
    ours, exact = (begun(N, D, TopK(0.2, FP32), EF14(), dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    for each in gradients(0, dtype=torch.bfloat16):
        seen = step(ours, each)
        assert seen.dtype is torch.bfloat16
        assert torch.equal(seen, step(exact, each.float()).bfloat16())
    assert ours.local["error"].dtype is torch.float32
    assert torch.equal(ours.local["error"], exact.local["error"])


def test_ef14_forgets_nothing():
    """The workers' errors, and all that was sent, are all that was put in: also with compressors that never keep a value."""
    for compressor in (TopK(0.1), BlockTopK(1, 8), ScaledSign(8), Int8(8), RandK(0.3), TopK(0.3, QSGD(4, 8))):
        strategy, g = begun(N, D, compressor, EF14()), gradients(2, steps=30)
        sent = sum(step(strategy, each) for each in g)
        assert (sent + strategy.local["error"].mean(0) - g.mean(1).sum(0)).abs().max() < 1e-12


def test_in_two_phases_the_servers_forget_nothing_either():
    for compressor in (TopK(0.1), ScaledSign(8), Int8(8), RandK(0.3)):
        strategy, g = begun(N, D, compressor, EF14(), "two_phase"), gradients(2, steps=30)
        sent = sum(step(strategy, each) for each in g)
        unsent = strategy.local["server_error"].flatten()[:D] + strategy.local["error"].mean(0)
        assert (sent + unsent - g.mean(1).sum(0)).abs().max() < 1e-12


@pytest.mark.parametrize("compressor", [ScaledSign(8), Int8(8), TopK(0.3)], ids=str)
def test_what_fills_up_the_last_part_is_nobody_s(compressor):
    clean, littered = (begun(N, D, compressor, EF14(), "two_phase") for _ in range(2))
    for g in gradients(2):
        littered.local["server_error"].flatten()[D:] = 1e6
        assert torch.equal(step(littered, g), step(clean, g))


@pytest.mark.parametrize("name", ["ef21", "ef21_sgdm", "econtrol", "ef21_w"])
@pytest.mark.parametrize("reducer", ["gather", "two_phase"])
def test_the_mean_estimate_is_the_mean_of_the_estimates_and_what_servers_owe(name, reducer):
    strategy = begun(N, D, TopK(0.1, FP32), FEEDBACKS[name][0], reducer, warmup_steps=1)
    for each in gradients(4, steps=40):
        seen = step(strategy, each)
    owed = strategy.local["server_error"].flatten()[:D] if reducer == "two_phase" else 0.0
    weighted = (strategy.local["estimate"] * strategy.mean.weights[:, None]).mean(0)
    assert (weighted - strategy.shared["mean_estimate"][0] - owed).abs().max() < 1e-12
    assert torch.equal(seen, strategy.shared["mean_estimate"][0])
    assert reducer == "gather" or owed.abs().max() > 1e-3


def test_without_feedback_servers_do_not_remember():
    strategy = begun(N, D, TopK(0.1), Feedback(), "two_phase")
    assert strategy.local == {}


@with_states
@pytest.mark.parametrize("reducer", ["gather", "two_phase"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("warmup_steps", [0, 9])
def test_a_row_that_is_not_finite_leaves_no_trace(name, reducer, bad, warmup_steps):
    sizes = (20, 10)
    strategies = [begun(N, sizes, TopK(0.2), FEEDBACKS[name][0], reducer, warmup_steps, torch.float32) for _ in range(2)]
    disturbed, undisturbed = strategies
    for number, g in enumerate(gradients(5, steps=6, dtype=torch.float32)):
        if number in (0, 3):
            before, spoilt = states(disturbed), g.clone()
            spoilt[2, 27] = bad  # in the second parameter of one worker
            assert step(disturbed, spoilt) is None
            assert same(states(disturbed), before)
        assert torch.equal(step(disturbed, g), step(undisturbed, g))
    assert same(states(disturbed), states(undisturbed))
    assert int(disturbed.shared["exchanges"]) == 6


@every
@pytest.mark.parametrize("reducer", ["gather", "two_phase"])
@pytest.mark.parametrize("compressor", [TopK(0.2), RandK(0.3), TopK(0.4, QSGD(4, 8)), Int8(8)], ids=str)
def test_results_do_not_depend_on_how_parameters_are_grouped(name, reducer, compressor):
    sizes = (7, 1, 12, 10)
    together, apart = (begun(N, sizes, compressor, FEEDBACKS[name][0], reducer, 1, torch.float32) for _ in range(2))
    for g in gradients(6, steps=5, dtype=torch.float32):
        whole = step(together, g)
        seen = {}
        for group in ([3], [1, 2], [0]):  # backward, as DDP's buckets
            units = [apart.layout.units[i] for i in group]
            seen |= zip(group, apart.reduce(units, [unit.of(g) for unit in units]), strict=True)
        assert apart.before_step()
        assert torch.equal(torch.cat([seen[i][0] for i in range(4)]), whole)
    assert same(states(together), states(apart))


def test_steps_parameters_workers_and_seeds_draw_apart():
    g = torch.ones(2, 40)
    strategy, other = (begun(2, (20, 20), RandK(0.3), Feedback(), dtype=torch.float32, seed=seed) for seed in (0, 1))
    first, second, elsewhere = step(strategy, g), step(strategy, g), step(other, g)
    parts = [first[:20], first[20:], second[:20], elsewhere[:20]]
    assert all(not torch.equal(a, b) for i, a in enumerate(parts) for b in parts[:i])
    assert 0.5 in first  # one worker's, of two that do not keep the same


def test_ef21_sgdm_of_the_newest_gradient_alone_is_ef21():
    ours, theirs = (begun(N, D, TopK(0.2, FP64), feedback, warmup_steps=1) for feedback in (EF21SGDM(1.0), EF21()))
    for g in gradients(7):
        torch.testing.assert_close(step(ours, g), step(theirs, g), rtol=0, atol=1e-13)


@pytest.mark.parametrize("feedback", [feedback for feedback, _ in FEEDBACKS.values()], ids=FEEDBACKS)
def test_nothing_is_lost_by_what_compresses_nothing(feedback):
    strategy = begun(N, D, TopK(1.0, FP64), EControl() if isinstance(feedback, EControl) else feedback, warmup_steps=1)
    g = gradients(8)
    momentum = g[0].mean(0)
    for each in g:
        share = feedback.eta if isinstance(feedback, EF21SGDM) else 1.0
        momentum = momentum + share * (each.mean(0) - momentum)
        torch.testing.assert_close(step(strategy, each), momentum, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (4, 7), (5, 4), (3, 1)])
@pytest.mark.parametrize("reducer", ["gather", "two_phase"])
@with_states
def test_another_number_of_workers_takes_over_the_mean_of_what_is_owed(name, reducer, before, after):
    feedback = FEEDBACKS[name][0]
    if name == "ef21_w":
        feedback, another = EF21W(tuple(range(1, before + 1))), EF21W(tuple(range(1, after + 1)))
    old = begun(before, (17, 10), TopK(0.2, FP32), feedback, reducer)
    for g in gradients(9, n=before, d=27):
        step(old, g)
    new = begun(after, (17, 10), TopK(0.2, FP32), another if name == "ef21_w" else feedback, reducer)
    for kind, each in new.shared.items():
        each.copy_(old.shared[kind])
    new.adopt([{kind: each[i : i + 1] for kind, each in old.local.items()} for i in range(before)])
    for kind in ("error", "momentum"):
        if kind in old.local:
            torch.testing.assert_close(new.local[kind].mean(0), old.local[kind].mean(0), rtol=0, atol=1e-13)
    assert owed_by_estimates(new) == pytest.approx(owed_by_estimates(old), abs=1e-12)
    if reducer == "two_phase" and name == "ef14":
        assert [each.tolist() for each in servers_errors(new)] == [each.tolist() for each in servers_errors(old)]


def test_payloads_that_are_gathered_now_take_over_the_servers_errors():
    old, new = (begun(n, (17, 10), TopK(0.2, FP32), EF14(), reducer) for n, reducer in ((4, "two_phase"), (3, "gather")))
    for g in gradients(9, n=4, d=27):
        step(old, g)
    new.adopt([{kind: each[i : i + 1] for kind, each in old.local.items()} for i in range(4)])
    owed = old.local["error"].mean(0) + torch.cat(servers_errors(old))
    torch.testing.assert_close(new.local["error"].mean(0), owed, rtol=0, atol=1e-13)


def servers_errors(strategy):
    """The error of the mean of each parameter, put together from the servers' parts."""
    parts = [strategy.mean.exchange.sizes(unit, strategy.world.size)["server_error"] for unit in strategy.layout.units]
    by_unit = strategy.local["server_error"].split(parts, dim=-1)
    return [part.flatten()[: unit.numel] for unit, part in zip(strategy.layout.units, by_unit, strict=True)]


def owed_by_estimates(strategy):
    """mean hᵢ − h − the servers' errors, which must stay zero: else h is wrong by that for ever."""
    if "estimate" not in strategy.local:
        return 0.0
    weighted = (strategy.local["estimate"] * strategy.mean.weights[:, None]).mean(0)
    owed = torch.cat(servers_errors(strategy)) if "server_error" in strategy.local else 0.0
    return float((weighted - strategy.shared["mean_estimate"][0] - owed).abs().max())


@pytest.mark.parametrize("feedback", [EF14(), EF21(), EF21SGDM(), EF21W((1.0,)), EControl()], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("compressor", [QSGD(), RandK(0.1, unbiased=True), TopK(0.1, QSGD(2, 64))], ids=str)
def test_what_does_not_contract_is_refused(feedback, compressor):
    with pytest.raises(ValueError, match=r"error feedback needs a contraction, which .* is not"):
        Compressed(compressor, feedback)
    Compressed(compressor, Feedback())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EControl(0.0), "eta must be greater than 0, got 0.0; without it EControl would be EF21"),
        (lambda: EF21SGDM(0.0), "eta must be greater than 0 and at most 1, got 0.0"),
        (lambda: EF21SGDM(1.1), "at most 1, got 1.1"),
        (lambda: EF21W(()), "a positive number for each worker, got "),
        (lambda: EF21W((1.0, -1.0)), "a positive number for each worker, got .1.0, -1.0."),
        (lambda: EF21W((1.0, 2.0)).weights(3), "a number for each of 3 workers, got 2"),
        (lambda: ef21_step_size(0.0, [1.0], 0.5), "need positive smoothness"),
        (lambda: ef21_step_size(1.0, [], 0.5), "need positive smoothness"),
        (lambda: ef21_step_size(1.0, [1.0], 1.5), "delta <= 1"),
        (lambda: begun(3, 4, TopK(0.5), EF21W((1.0, 2.0))), "a number for each of 3 workers, got 2"),
        (lambda: Compressed(Int8(), EF14(), "all_reduce"), "cannot be summed"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_identity_may_be_all_reduced_or_gathered():
    g = gradients(1, dtype=torch.float32)
    for reducer in ("auto", "gather", "two_phase", "all_reduce"):
        strategy = begun(N, D, Identity(), EF14(), reducer, dtype=torch.float32)
        for each in g:
            torch.testing.assert_close(step(strategy, each), each.mean(0))
