"""FedAvg, what it becomes with other servers and local steps, MIFA and FedDyn: reductions to each other and to plain descent."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.federated import MIFA, FedAvg, FedDyn, ServerOptimizer
from tests.federated.quadratics import FullGradients, Quadratics, federation, run
from tests.federated.strategies import few, sizes

UNIFORM = FedAvg(weighting="uniform")


def same(first, second, rounds=5):
    for _ in range(rounds):
        first.step()
        second.step()
        torch.testing.assert_close(first.x, second.x, atol=1e-12, rtol=1e-12)


def uneven(size):
    """Clients of 1 to 6 samples, each of which is a row of its own."""
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    problem.sizes = torch.arange(size.clients) % 6 + 1

    def gradients(y, clients, draws):
        kept = torch.arange(6) < problem.sizes[clients, None]
        residual = ((problem.a[clients] * y[:, None]).sum(-1) - problem.b[clients]) * kept
        count = problem.sizes[clients].double()
        return residual.square().sum(-1) / 2 / count, (problem.a[clients] * residual[..., None]).sum(1) / count[:, None]

    problem.gradients = gradients
    return problem


@few
@given(sizes(), st.sampled_from([FedAvg(mu=0.0, optimizer=ServerOptimizer("momentum", 1.0, beta1=0.0)), FedAvg(mu=0.0)]))
def test_degenerate_cases_are_fedavg(size, algorithm):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    same(*(federation(each, problem, size.cohort, steps=size.steps) for each in (algorithm, FedAvg())))


@few
@given(sizes())
def test_one_step_on_all_data_is_descent_on_the_pooled_data(size):
    problem, x = uneven(size), torch.zeros(size.d, dtype=torch.float64)
    fed = federation(FedAvg(), problem, steps=1, lr=0.1)
    for _ in range(4):
        gradients = problem.gradients(x.expand(size.clients, -1), torch.arange(size.clients), None)[1]
        x = x - 0.1 * (problem.sizes.double() @ gradients) / problem.sizes.sum()
        fed.step()
        torch.testing.assert_close(fed.x, x, atol=1e-12, rtol=1e-12)


@few
@given(sizes())
def test_mifa_with_everybody_is_fedavg(size):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    same(*(federation(each, problem, steps=size.steps) for each in (MIFA(), UNIFORM)))


@few
@given(sizes())
def test_mifa_moves_along_the_mean_of_all_memories(size):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    fed = run(federation(MIFA(server_lr=0.5), problem, size.cohort, steps=size.steps, lr=0.1), 3)
    before = fed.x
    fed.step()
    mean = fed.store.vectors["memory"].mean(0)
    torch.testing.assert_close(fed.x, before - 0.5 * 0.1 * mean, atol=1e-12, rtol=1e-12)


@few
@given(sizes(), st.sampled_from([0.1, 1.0]), st.sampled_from([0.0, 0.5]))
def test_feddyn_keeps_the_mean_of_the_clients_vectors(size, alpha, dropout):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    fed = federation(FedDyn(alpha), problem, size.cohort, steps=size.steps)
    for _ in range(5):
        fed.step()
        torch.testing.assert_close(fed.server["h"], fed.store.vectors["gradient"].mean(0), atol=1e-10, rtol=1e-10)


def test_feddyn_reaches_the_minimum_of_all():
    problem = FullGradients(10, 4)
    fed = run(federation(FedDyn(0.5), problem, cohort=4, steps=5), 400)
    assert (fed.x - problem.minimum()).norm() < 1e-8


def test_one_client_returns_its_own_model():
    problem = Quadratics(6, 3)
    fed = federation(FedAvg(), problem, cohort=1, lr=0.1, start=torch.ones(3, dtype=torch.float64))
    serial = federation(FedAvg(), problem, cohort=1, lr=0.1, start=torch.ones(3, dtype=torch.float64), serial=True)
    fed.step()
    serial.step()
    assert torch.equal(fed.x, serial.x)
    assert fed.x.dtype == torch.float64


def test_proximal_steps_stay_nearer():
    problem = FullGradients(6, 3)
    near, far = (run(federation(FedAvg(mu), problem, steps=20), 1).x.norm() for mu in (5.0, 0.0))
    assert near < far / 2


def test_momentum_and_decay_of_local_steps_are_torchs():
    problem = FullGradients(1, 3)
    fed = run(federation(FedAvg(), problem, steps=5, lr=0.1, momentum=0.9, weight_decay=0.2), 1)
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(5):
        x.grad = problem.gradient(x.detach())[0]
        optimizer.step()
    torch.testing.assert_close(fed.x, x.detach())


@pytest.mark.parametrize("rule", ["adam", "adagrad", "yogi"])
def test_server_rules_are_the_papers(rule):
    optimizer, generator = ServerOptimizer(rule, 0.5, 0.8, 0.9, 0.01), torch.Generator().manual_seed(0)
    x = torch.zeros(4, dtype=torch.float64)
    server, m, v = {"x": x, **optimizer.init(x)}, torch.zeros(4).double(), torch.full((4,), 1e-4).double()
    for _ in range(4):
        delta = torch.randn(4, dtype=torch.float64, generator=generator)
        server = optimizer.step(server, delta)
        m = 0.8 * m + 0.2 * delta
        sign = torch.where(v > delta**2, 1.0, -1.0)
        v = {"adam": 0.9 * v + 0.1 * delta**2, "adagrad": v + delta**2, "yogi": v - 0.1 * delta**2 * sign}[rule]
        x = x + 0.5 * m / (v.sqrt() + 0.01)
        torch.testing.assert_close(server["x"], x)


@pytest.mark.parametrize("wrong", [{"rule": "lion"}, {"lr": 0.0}, {"beta1": 1.0}, {"beta2": -0.1}, {"tau": 0.0}])
def test_bad_server_optimizers(wrong):
    with pytest.raises(ValueError, match=r"must be one of|need lr"):
        ServerOptimizer(**wrong)
