"""RERCE-Fed: dual ADMM in fewer words, its inexact form, clients that go on alone, and what noise does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.federated import RERCE, ContinualRERCE, LeastSquares
from tests.federated.quadratics import FullGradients, Quadratics, federation, run
from tests.federated.strategies import Size, few, sizes

BOTH = pytest.mark.parametrize("kind", [RERCE, ContinualRERCE])


def data(size, rows=6):
    generator = torch.Generator().manual_seed(size.seed)
    matrices = [torch.randn(rows, size.d, dtype=torch.float64, generator=generator) for _ in range(size.clients)]
    return matrices, [torch.randn(rows, dtype=torch.float64, generator=generator) for _ in range(size.clients)]


def stiff(clients=12, d=8, rows=5, weight=1e4):
    """The paper's setting on a small scale: ρ = 1 is little against the curvature, and no client sees all directions."""
    matrices, noises = data(Size(clients, clients, d, 1, 3), rows)
    truth = torch.arange(1.0, d + 1, dtype=torch.float64)
    return LeastSquares(matrices, [h @ truth + 0.01 * noise for h, noise in zip(matrices, noises, strict=True)], weight)


class AllRows(LeastSquares):
    """Every minibatch is all local data."""

    def gradients(self, y, clients, draws):
        return super().gradients(y, clients, None)


@few
@given(sizes(), st.sampled_from([0.5, 2.0]), st.sampled_from([0.0, 1.0]), st.sampled_from([RERCE, ContinualRERCE]))
def test_with_everybody_and_no_noise_it_is_dual_admm(size, rho, first, kind):
    matrices, targets = data(size)
    start = torch.full((size.d,), first, dtype=torch.float64)
    fed = federation(kind(rho, exact=True), LeastSquares(matrices, targets), start=start)
    identity = torch.eye(size.d, dtype=torch.float64)
    z, duals = start, [torch.zeros(size.d).double() for _ in matrices]
    for _ in range(6):
        models = [
            torch.linalg.solve(h.T @ h + rho * identity, h.T @ y - dual + rho * z)
            for h, y, dual in zip(matrices, targets, duals, strict=True)
        ]
        before, z = z, torch.stack(models).mean(0)
        duals = [dual + rho * (model - z) for dual, model in zip(duals, models, strict=True)]
        fed.step()
        torch.testing.assert_close(fed.store.vectors["model"], torch.stack(models), atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(fed.x, z if kind is RERCE else 2 * z - before, atol=1e-8, rtol=1e-8)


@BOTH
def test_with_everybody_it_reaches_the_minimum_of_all(kind):
    problem = LeastSquares(*data(Size(10, 10, 4, 1, 0)))
    fed = run(federation(kind(5.0, exact=True), problem), 200)
    assert (fed.x - problem.minimum).norm() < 1e-9


@few
@given(sizes(), st.sampled_from([RERCE, ContinualRERCE]))
def test_the_minimum_is_a_fixed_point(size, kind):
    problem = LeastSquares(*data(size))
    fed = run(federation(kind(exact=True), problem, size.cohort), 1)
    for vectors in (fed.server, fed.store.vectors):
        for name, each in vectors.items():
            if name != "rounds":
                each[:] = problem.minimum
    run(fed, 4)
    torch.testing.assert_close(fed.x, problem.minimum, atol=1e-8, rtol=1e-8)


@BOTH
def test_so_is_anything_that_all_share(kind):
    """Which is why few participants, or noise, let the model drift where ρ is not small."""
    problem, anything = LeastSquares(*data(Size(6, 6, 3, 1, 0))), torch.tensor([7.0, -5.0, 3.0]).double()
    fed = run(federation(kind(exact=True), problem), 1)
    for vectors in (fed.server, fed.store.vectors):
        for name, each in vectors.items():
            if name != "rounds":
                each[:] = anything
    torch.testing.assert_close(run(fed, 4).x, anything, atol=1e-9, rtol=1e-9)


def test_rounds_of_everybody_conserve_what_picks_the_minimum():
    problem, rho = LeastSquares(*data(Size(5, 5, 3, 1, 2))), 0.7
    hessians = torch.stack([h.T @ h for h in problem._matrices]) + rho * torch.eye(3, dtype=torch.float64)
    fed = federation(RERCE(rho, exact=True), problem)
    for _ in range(6):
        before = fed.x
        fed.step()
        kept = torch.einsum("kij,kj->i", hessians, fed.store.vectors["model"]) - rho * 5 * before
        torch.testing.assert_close(kept, problem._moments.sum(0), atol=1e-9, rtol=1e-9)


@BOTH
@pytest.mark.parametrize("cohort", [4, 2])
def test_many_small_steps_are_the_closed_form(kind, cohort):
    matrices, targets = data(Size(4, 4, 3, 1, 1))
    exact = run(federation(kind(2.0, exact=True), LeastSquares(matrices, targets), cohort), 6)
    inexact = run(federation(kind(2.0), AllRows(matrices, targets), cohort, steps=400, lr=0.05), 6)
    torch.testing.assert_close(exact.x, inexact.x, atol=1e-8, rtol=1e-8)
    models = exact.store.vectors["model"]
    if kind is ContinualRERCE:
        torch.testing.assert_close(models, inexact.store.vectors["model"], atol=1e-8, rtol=1e-8)
    gradients = AllRows(matrices, targets).gradients(models, torch.arange(4), None)[1]
    torch.testing.assert_close(gradients, inexact.store.vectors["dual"], atol=1e-7, rtol=1e-7)


@few
@given(sizes(), st.floats(0.1, 2.0))
def test_rounds_of_everybody_conserve_the_sum_of_duals_however_few_the_steps(size, rho):
    fed = federation(RERCE(rho), Quadratics(size.clients, size.d, seed=size.seed), steps=size.steps, seed=size.seed)
    for _ in range(5):
        before = fed.x
        fed.step()
        kept = fed.store.vectors["dual"].sum(0) + rho * size.clients * (fed.x - before)
        torch.testing.assert_close(kept, torch.zeros_like(kept), atol=1e-9, rtol=0)


@BOTH
def test_few_steps_of_everybody_reach_the_minimum_all_the_same(kind):
    problem = FullGradients(5, 3)
    fed = run(federation(kind(0.5), problem, steps=2, lr=0.1), 600)
    assert (fed.x - problem.minimum()).norm() < 1e-9
    duals = fed.store.vectors["dual"]
    torch.testing.assert_close(duals, problem.gradient(fed.x), atol=1e-8, rtol=0, msg="each one's gradient there")
    assert duals.norm() > 0.1, "clients differ"


def test_going_on_alone_is_one_move_a_round():
    """The published script computes every client in every round; a client that catches up must come to the same."""
    problem, rho = LeastSquares(*data(Size(7, 7, 3, 1, 4))), 1.5
    fed = federation(ContinualRERCE(rho, exact=True), problem, cohort=2)
    inverses = torch.linalg.inv(torch.stack([h.T @ h for h in problem._matrices]) + rho * torch.eye(3, dtype=torch.float64))
    fed.step()
    x, heard, sent = fed.store.vectors["model"].clone(), torch.zeros(7, 3).double(), 2 * fed.store.vectors["model"]
    for number in range(1, 9):
        cohort = fed.availability.participation.cohort(torch.arange(7), problem.sizes, 2, 0, number)
        heard[cohort] = sent.mean(0)
        after = x + rho * torch.einsum("kij,kj->ki", inverses, heard - x)
        sent[cohort] = (2 * after - x)[cohort]
        x = after
        fed.step()
        torch.testing.assert_close(fed.x, sent.mean(0), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(fed.store.vectors["model"][cohort], x[cohort], atol=1e-9, rtol=1e-9)


@few
@given(sizes(), st.floats(0.1, 10.0))
def test_the_paper_s_matrix_and_its_eigenvalues(size, rho):
    matrices, targets = data(size, rows=2)
    problem, identity = LeastSquares(matrices, targets, 3.0), torch.eye(size.d, dtype=torch.float64)
    x, s = torch.randn(2, size.clients, size.d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    clients, once = torch.arange(size.clients), torch.ones(size.clients).double()
    moved, started = problem.move(clients, x, s, rho, once), problem.minimise(clients, s, rho)
    for client, (h, y) in enumerate(zip(matrices, targets, strict=True)):
        b = torch.linalg.inv(3.0 * h.T @ h + rho * identity)
        torch.testing.assert_close(moved[client], (identity - rho * b) @ x[client] + rho * b @ s[client], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(started[client], b @ (3.0 * h.T @ y + rho * s[client]), atol=1e-9, rtol=1e-9)
        values = torch.linalg.eigvalsh(rho * b)
        assert values.min() > 0
        assert values.max() < 1 + 1e-9
        unseen = torch.linalg.svd(h).Vh[len(h) :]
        torch.testing.assert_close(unseen @ moved[client], unseen @ s[client], atol=1e-9, rtol=1e-9)
    twice = problem.move(clients, moved, s, rho, once)
    torch.testing.assert_close(problem.move(clients, x, s, rho, 2 * once), twice, atol=1e-9, rtol=1e-9)


@BOTH
def test_few_participants_of_the_papers_setting_come_near_the_minimum(kind):
    problem = stiff()
    fed = run(federation(kind(1.0, exact=True), problem, cohort=3), 300)
    assert (fed.x - problem.minimum).norm() < 1e-2 * problem.minimum.norm()


def test_the_floor_is_in_proportion_to_the_noise_and_lower_for_those_who_go_on():
    def floor(kind, variance, cohort):
        fed = run(federation(kind(1.0, exact=True), stiff(), cohort, noise_up=variance, noise_down=variance), 150)
        minimum = fed.engine.problem.minimum
        return sum(float((run(fed, 1).x - minimum).square().mean()) for _ in range(60)) / 60

    small, large = floor(RERCE, 1e-4, 12), floor(RERCE, 1e-2, 12)
    assert large / small == pytest.approx(100, rel=0.2)
    assert floor(ContinualRERCE, 1e-2, 3) < 0.5 * floor(RERCE, 1e-2, 3)


@BOTH
def test_samples_of_missed_rounds_are_drawn_anew(kind):
    seen = []

    class Records(LeastSquares):
        def gradients(self, y, clients, draws):
            if draws is not None:
                seen.extend(map(tuple, zip(clients.tolist(), draws.tolist(), strict=True)))
            return super().gradients(y, clients, draws)

    matrices, targets = data(Size(6, 6, 3, 1, 1))
    run(federation(kind(), Records(matrices, targets), cohort=2, steps=2, lr=0.01), 8)
    assert len({(client, tuple(draws)) for client, draws in seen}) == len(seen)


def test_a_problem_without_closed_form_says_so():
    with pytest.raises(TypeError, match="use local steps"):
        federation(RERCE(exact=True), Quadratics(3, 2)).step()


def test_rho_is_positive():
    with pytest.raises(ValueError, match="rho must be positive"):
        RERCE(0.0)
