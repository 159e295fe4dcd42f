"""FedPAGE: large-batch descent, PAGE over clients, and what each kind of round costs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.federated import Availability, FedPAGE, Work
from disttrain.federated.participation import UniformConfig
from tests.federated.quadratics import FullGradients, Quadratics, federation, run
from tests.federated.strategies import few, sizes


@few
@given(sizes(), st.sampled_from([0.5, 1.0]))
def test_always_asking_everybody_is_gradient_descent(size, server_lr):
    problem, x = Quadratics(size.clients, size.d, seed=size.seed), torch.zeros(size.d, dtype=torch.float64)
    fed = federation(FedPAGE(1.0, server_lr), problem, size.cohort, steps=size.steps, lr=0.03)
    for _ in range(4):
        fed.step()
        x = x - server_lr * 0.03 * size.steps * problem.gradient(x).mean(0)
        torch.testing.assert_close(fed.x, x, atol=1e-12, rtol=1e-12)


@few
@given(sizes())
def test_with_one_step_it_is_page_over_clients(size):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    algorithm = FedPAGE(0.3)
    fed = federation(algorithm, problem, size.cohort, steps=1, lr=0.1, seed=size.seed)
    x = before = g = torch.zeros(size.d, dtype=torch.float64)
    for number in range(8):
        plan = replace(fed.plan, round=number)
        if algorithm.with_everybody(plan):
            g = problem.gradient(x).mean(0)
        else:
            cohort = UniformConfig().cohort(torch.arange(size.clients), problem.sizes, size.cohort, size.seed, number)
            g = g + (problem.gradient(x, cohort) - problem.gradient(before, cohort)).mean(0)
        before, x = x, x - 0.1 * g
        fed.step()
        torch.testing.assert_close(fed.x, x, atol=1e-12, rtol=1e-12)


def test_local_steps_compare_two_points_on_the_same_samples():
    problem, algorithm = Quadratics(3, 4), FedPAGE(1e-9)
    fed = run(federation(algorithm, problem, steps=3, lr=0.1), 2)
    work = Work.of_block(problem, replace(fed.plan, round=2), torch.arange(3))
    x, before = fed.x.expand(3, -1), fed.server["before"].expand(3, -1)
    g = fed.server["g"] + problem.gradient(fed.x) - problem.gradient(fed.server["before"])
    y = x
    for step in range(3):
        if step:
            g = g + work.gradient(y, step) - work.gradient(before, step)
        before, y = y, y - 0.1 * g
    fed.step()
    torch.testing.assert_close(fed.x, y.mean(0), atol=1e-12, rtol=1e-12)


@few
@given(sizes())
def test_what_each_kind_of_round_costs(size):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    algorithm = FedPAGE(0.5)
    fed = federation(algorithm, problem, size.cohort, steps=size.steps, seed=size.seed)
    for number in range(6):
        everybody = algorithm.with_everybody(replace(fed.plan, round=number))
        asked = size.clients if everybody else size.cohort
        report = fed.step()
        assert (report.asked, report.bytes_up) == (asked, asked * 8 * size.d)
        assert report.bytes_down == asked * 8 * size.d * (1 if everybody else 3)
        each = 6 if everybody else 2 * 6 + 2 * 2 * (size.steps - 1)
        assert report.evaluations == asked * each


def test_the_coin_is_the_servers_and_as_often_heads_as_asked_for():
    fed = federation(FedPAGE(0.3), Quadratics(2, 1))
    heads = [FedPAGE(0.3).with_everybody(replace(fed.plan, round=number)) for number in range(2000)]
    assert heads[0]
    assert 0.27 < sum(heads) / 2000 < 0.33


@pytest.mark.parametrize("probability", [0.2, 0.5])
def test_few_participants_reach_the_minimum_of_all(probability):
    problem = FullGradients(10, 4)
    fed = run(federation(FedPAGE(probability), problem, cohort=4, steps=5, lr=0.1), 150)
    assert (fed.x - problem.minimum()).norm() < 1e-6


def test_a_round_of_everybody_loses_clients_too():
    fed = federation(FedPAGE(1.0), Quadratics(40, 3), availability=Availability(4, dropout=0.5))
    report = fed.step()
    assert report.asked == 40
    assert 10 < report.lost < 30


@pytest.mark.parametrize("wrong", [0.0, 1.5])
def test_bad_arguments(wrong):
    with pytest.raises(ValueError, match="probability must be"):
        FedPAGE(wrong)
