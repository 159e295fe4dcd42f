"""FedAMD: what anchors and miners do, and what they do not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.federated import FedAMD, Work
from disttrain.federated.algorithms.fedamd import best_probability, best_probability_closed, conservative_probability
from disttrain.federated.participation import UniformConfig
from tests.federated.quadratics import FullGradients, Quadratics, federation, run
from tests.federated.strategies import few, sizes


@few
@given(sizes())
def test_anchors_renew_their_caches_and_move_nothing(size):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    start = torch.randn(size.d, dtype=torch.float64)
    fed = run(federation(FedAMD(1.0), problem, size.cohort, start=start, steps=size.steps), 4)
    assert torch.equal(fed.x, start)
    torch.testing.assert_close(fed.store.vectors["cache"], problem.gradient(start))
    torch.testing.assert_close(fed.server["mean_cache"], problem.gradient(start).mean(0))


@few
@given(sizes(), st.sampled_from([0.5, 1.0]))
def test_alternating_with_everybody_and_one_step_is_large_batch_descent(size, server_lr):
    problem, x = Quadratics(size.clients, size.d, seed=size.seed), torch.zeros(size.d, dtype=torch.float64)
    fed = federation(FedAMD(period=2, server_lr=server_lr), problem, steps=1, lr=0.1)
    for _ in range(4):
        run(fed, 2)
        x = x - server_lr * 0.1 * problem.gradient(x).mean(0)
        torch.testing.assert_close(fed.x, x, atol=1e-12, rtol=1e-12)


@few
@given(sizes())
def test_alike_clients_mine_by_gradient_descent(size):
    problem, x = FullGradients(size.clients, size.d, seed=size.seed, alike=True), torch.zeros(size.d, dtype=torch.float64)
    fed = federation(FedAMD(period=2), problem, size.clients, steps=size.steps, lr=0.1)
    for _ in range(2):
        run(fed, 2)
        for _ in range(size.steps):
            x = x - 0.1 * problem.gradient(x).mean(0)
        torch.testing.assert_close(fed.x, x, atol=1e-12, rtol=1e-12)


@few
@given(sizes())
def test_the_first_step_of_all_miners_is_along_the_mean_cache_whatever_they_sample(size):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    fed = run(federation(FedAMD(0.0, server_lr=0.7), problem, size.cohort, steps=1, lr=0.1), 1)
    before, mean_cache = fed.x, fed.server["mean_cache"]
    report = fed.step()
    torch.testing.assert_close(fed.x, before - 0.7 * 0.1 * mean_cache)
    assert report.evaluations == 0, "with one step nothing need be sampled"


@few
@given(sizes())
def test_who_anchors_changes_only_the_cache_and_only_its_own(size):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    algorithm = FedAMD(0.5)
    fed = run(federation(algorithm, problem, size.cohort, steps=size.steps, seed=size.seed), 3)
    plan = replace(fed.plan, round=3)
    cohort = UniformConfig().cohort(torch.arange(size.clients), problem.sizes, size.cohort, size.seed, 3)
    anchors = cohort[algorithm.anchors(plan, cohort)]
    others = [client for client in range(size.clients) if client not in anchors.tolist()]
    caches, x = fed.store.vectors["cache"].clone(), fed.x
    report = fed.step()
    assert torch.equal(fed.store.vectors["cache"][others], caches[others])
    torch.testing.assert_close(fed.store.vectors["cache"][anchors], problem.gradient(x, anchors))
    torch.testing.assert_close(fed.server["mean_cache"], fed.store.vectors["cache"].mean(0), atol=1e-12, rtol=1e-12)
    if len(anchors) == len(cohort):
        assert torch.equal(fed.x, x), "nobody mined"
    assert report.bytes_up == len(cohort) * 8 * size.d
    assert report.bytes_down == (2 * len(cohort) - len(anchors)) * 8 * size.d
    assert report.evaluations == 6 * len(anchors) + (len(cohort) - len(anchors)) * 4 * (size.steps - 1)


def test_miners_compare_two_points_on_the_same_samples():
    problem = Quadratics(3, 4)
    fed = run(federation(FedAMD(0.0), problem, steps=3, lr=0.1), 1)
    moves = []
    for client in fed.availability.participation.cohort(torch.arange(3), problem.sizes, 3, 0, 1):
        work = Work.of_block(problem, replace(fed.plan, round=1), client[None])
        before, g = fed.x[None], fed.server["mean_cache"][None]
        y = before - 0.1 * g
        for step in (1, 2):
            g = g + work.gradient(y, step) - work.gradient(before, step)
            before, y = y, y - 0.1 * g
        moves.append(y - fed.x)
    expected = fed.x + torch.cat(moves).mean(0)
    fed.step()
    torch.testing.assert_close(fed.x, expected, atol=1e-12, rtol=1e-12)


def test_the_anchors_data_do_not_move_the_model_in_their_own_round():
    def mined(scale):
        problem = Quadratics(6, 3)
        fed = run(federation(FedAMD(0.5), problem, cohort=4, seed=5), 1)
        plan = replace(fed.plan, round=1)
        cohort = UniformConfig().cohort(torch.arange(6), problem.sizes, 4, 5, 1)
        anchors = cohort[FedAMD(0.5).anchors(plan, cohort)]
        assert 0 < len(anchors) < 4
        problem.b[anchors] *= scale
        return run(fed, 1).x

    assert torch.equal(mined(1.0), mined(9.0))


def test_round_zero_is_an_introduction():
    report = federation(FedAMD(0.5), Quadratics(9, 3), cohort=2).step()
    assert (report.used, report.evaluations, report.bytes_up) == (9, 9 * 6, 9 * 3 * 8)


@pytest.mark.parametrize("algorithm", [FedAMD(0.2), FedAMD(0.5), FedAMD(0.8), FedAMD(period=2), FedAMD(period=4)])
def test_few_participants_reach_the_minimum_of_all(algorithm):
    problem = FullGradients(10, 4)
    fed = run(federation(algorithm, problem, cohort=4, steps=5), 700)
    assert (fed.x - problem.minimum()).norm() < 1e-6


def test_without_anchors_it_diverges():
    problem = FullGradients(10, 4)
    fed = run(federation(FedAMD(0.0), problem, cohort=4, steps=5), 300)
    assert (fed.x - problem.minimum()).norm() > 10


@pytest.mark.parametrize(("cohort", "best", "closed", "conservative"),
                         [(10, 0.830, 0.836, 0.494), (20, 0.880, 0.887, 0.488), (40, 0.920, 0.927, 0.477)])  # fmt: skip
def test_best_probabilities(cohort, best, closed, conservative):
    assert best_probability(100, cohort) == pytest.approx(best, abs=6e-4)
    assert best_probability_closed(cohort) == pytest.approx(closed, abs=6e-4)
    assert conservative_probability(100, cohort) == pytest.approx(conservative, abs=6e-4)


@pytest.mark.parametrize("clip_norm", [1e-3, 0.5])
def test_no_step_is_longer_than_its_clip_norm_and_gradients_stay_whole(clip_norm):
    problem = FullGradients(4, 3, spread=5.0)
    fed = run(federation(FedAMD(period=2), problem, steps=3, lr=0.1, clip_norm=clip_norm), 1)
    torch.testing.assert_close(fed.store.vectors["cache"], problem.gradient(torch.zeros(3, dtype=torch.float64)))
    y = before = torch.zeros(4, 3, dtype=torch.float64)
    g = problem.gradient(y[0]).mean(0).expand(4, -1)
    for step in range(3):
        if step:
            both = (problem.gradients(each, torch.arange(4), None)[1] for each in (y, before))
            g = g + next(both) - next(both)
        before, y = y, y - 0.1 * g * (clip_norm / (g.norm(dim=-1, keepdim=True) + 1e-6)).clamp(max=1.0)
    fed.step()
    torch.testing.assert_close(fed.x, y.mean(0), atol=1e-12, rtol=1e-12)
    assert fed.x.norm() <= 3 * 0.1 * clip_norm


@pytest.mark.parametrize("wrong", [{"probability": 1.5}, {"probability": -0.1}, {"period": 1}])
def test_bad_arguments(wrong):
    with pytest.raises(ValueError, match="must be"):
        FedAMD(**wrong)
