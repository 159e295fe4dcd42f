"""The scripts that hold federated algorithms against their papers, at toy size; their figures are in docs."""

from dataclasses import replace

import pytest
import rerce_noise
import torch
from federated_claims import Digits, Result, algorithms, train, tuned
from federated_claims_report import draw, line, typical, verdicts
from rerce_noise import CASES, Case, measure


def test_the_networks_gradients_are_autograds():
    problem = Digits(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    torch.nn.utils.vector_to_parameters(problem.start, model.parameters())
    clients = torch.tensor([3, 60])
    losses, gradients = problem.gradients(problem.start.expand(2, -1), clients, None)
    for row, client in enumerate(clients.tolist()):
        loss = torch.nn.functional.cross_entropy(model(problem.images[client]), problem.labels[client])
        expected = torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(model.parameters()))])
        torch.testing.assert_close(gradients[row], expected)
        torch.testing.assert_close(losses[row], loss.detach())
    draws = torch.tensor([[0, 15, 28], [1, 2, 3]])
    sampled = problem.gradients(problem.start.expand(2, -1), clients, draws)[0]
    expected = torch.nn.functional.cross_entropy(model(problem.images[3][[0, 1, 0]]), problem.labels[3][[0, 1, 0]])
    torch.testing.assert_close(sampled[0], expected.detach())


def test_clients_have_one_class_or_two():
    classes = [len(labels.unique()) for labels in Digits(1).labels]
    assert set(classes) <= {1, 2}
    assert classes.count(1) >= 80


@pytest.mark.parametrize("name", algorithms(1.0))
def test_every_entry_runs_and_repeats(name):
    result = train(name, 0.1, 1.0, 0, rounds=3)
    assert 0 < result.accuracy < 1
    assert result == train(name, 0.1, 1.0, 0, rounds=3)


def test_what_it_took_to_the_target_is_counted_when_three_rounds_are_there(monkeypatch):
    seen = iter([0.9, 0.1, 0.9, 0.9, 0.9, 0.9])
    monkeypatch.setattr(Digits, "accuracy", lambda *_: next(seen))
    result = train("fedavg", 0.1, 1.0, 0, rounds=6)
    d = len(Digits(0).start)
    assert (result.rounds, result.megabytes_up, result.gradients) == (5, 5 * 5 * 4 * d / 1e6, 5 * 5 * 20 * 5)


def test_what_diverges_learns_nothing():
    assert train("fedavg", 1e30, 1.0, 0, rounds=4).accuracy < 0.3


def test_nothing_is_begun_after_the_deadline():
    assert tuned("fedavg", 3, deadline=0.0) == []


def test_verdicts_are_of_medians(tmp_path):
    one = Result("scaffold", 0.1, 1.0, 0, 0.9, 100, 10.0, 1000)
    table = {
        "scaffold": [one, replace(one, rounds=90), replace(one, rounds=300)],
        "scafcom top-1 %": [replace(one, name="scafcom top-1 %", accuracy=0.88, megabytes_up=0.1)],
        "fedamd p=.5": [replace(one, name="fedamd p=.5", rounds=101, megabytes_up=None)],
    }
    assert typical(table["scaffold"], "rounds") == 100
    assert typical(table["fedamd p=.5"], "megabytes_up") == float("inf")
    assert verdicts(table) == [
        "scafcom top-1 %: -2.0 points of accuracy against scaffold at the end, 1e+02 times less sent until the target.",
        "fedamd p=.5: fewer rounds to the target than none of scaffold.",
    ]
    assert "100/90/300" in line(table["scaffold"])
    draw(table, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


@pytest.fixture
def _small(monkeypatch):
    monkeypatch.setattr(rerce_noise, "UNKNOWNS", 100)
    monkeypatch.setattr(rerce_noise, "CLIENTS", 10)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("algorithm", rerce_noise.NAMES)
def test_every_algorithm_comes_near_and_noise_keeps_it_away(algorithm):
    quiet, noisy = (measure(Case(algorithm, noise, 10, 60, None), 0) for noise in (0.0, 1e-2))
    assert quiet.floor < -40
    assert quiet.floor + 10 < noisy.floor < -10
    assert len(quiet.curve) == 6


@pytest.mark.usefixtures("_small")
def test_tables_and_pictures_of_noise(tmp_path):
    case = Case("rerce", 1e-2, 3, 20, -20.0)
    results = [measure(case, seed) for seed in range(2)]
    off = rerce_noise.mean_floor(results) + 20
    assert rerce_noise.line(results).endswith(f"{off:+.1f}")
    assert "0 of 1 floors" in rerce_noise.verdict([[replace(results[0], floor=-3.0)]])
    assert "1 of 1 floors" in rerce_noise.verdict([[replace(results[0], floor=-20.5)]])
    rerce_noise.draw([results], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_every_expected_floor_of_the_published_setting_is_looked_for():
    assert sum(case.expected is not None for case in CASES) == 12
