"""The scripts that hold federated algorithms against their papers, at toy size; their figures are in docs."""

from dataclasses import replace

import federated_claims_runs
import pytest
import rerce_noise
import torch
from federated_claims import REGIMES, entry_of
from federated_claims_report import draw, line, typical, verdicts
from federated_claims_runs import LRS, Result, Run, Runs, best, train
from federated_claims_task import Digits, Task
from rerce_noise import CASES, Case, measure

TASKS = [Task(hidden=16), Task(hidden=4, shifted=True, centred=True, smooth=True, decay=0.1)]


@pytest.mark.parametrize("task", TASKS)
def test_the_networks_gradients_are_autograds(task):
    problem = Digits(task, 0)
    hidden = torch.nn.Tanh() if task.smooth else torch.nn.ReLU()
    model = torch.nn.Sequential(torch.nn.Linear(64, task.hidden), hidden, torch.nn.Linear(task.hidden, 10))
    torch.nn.utils.vector_to_parameters(problem.start, model.parameters())
    clients, draws = torch.tensor([3, 60]), torch.tensor([[0, 1 + problem.sizes[3], 5], [1, 2, 3]])
    for given, samples in ((None, range(int(problem.sizes[0]))), (draws, [0, 1, 5])):
        losses, gradients = problem.gradients(problem.start.expand(2, -1), clients, given)
        loss = torch.nn.functional.cross_entropy(model(problem.images[3][list(samples)]), problem.labels[3][list(samples)])
        loss = loss + task.decay / 2 * sum(each.square().sum() for each in model.parameters())
        expected = torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(model.parameters()))])
        torch.testing.assert_close(gradients[0], expected)
        torch.testing.assert_close(losses[0], loss.detach())


def test_the_norm_is_of_the_mean_of_all_clients_gradients():
    problem = Digits(TASKS[1], 0)
    each = problem.gradients(problem.start.expand(100, -1), torch.arange(100), None)[1]
    assert problem.squared_norm(problem.start) == pytest.approx(float(each.mean(0).square().sum()), rel=1e-4)


def test_with_whole_batches_draws_do_not_matter():
    problem, draws = Digits(TASKS[0], 0, whole=True), torch.tensor([[0]])
    x, clients = problem.start[None], torch.tensor([5])
    assert torch.equal(problem.gradients(x, clients, draws)[1], problem.gradients(x, clients, None)[1])


@pytest.mark.parametrize(("task", "most"), [(Task(), 2), (Task(clients=200, shards=2, shifted=True), 4)])
def test_clients_have_few_classes(task, most):
    problem = Digits(task, 1)
    classes = [len(labels.unique()) for labels in problem.labels]
    assert max(classes) <= most
    assert sum(each <= task.shards for each in classes) >= 0.8 * task.clients
    assert problem.images.shape[:2] == (task.clients, int(problem.sizes[0]))


def test_a_moved_digit_is_the_same_but_for_its_place():
    one = Digits(Task(clients=1, shifted=True), 0)
    plain = Digits(Task(clients=1), 0)
    assert len(one.images[0]) == 9 * len(plain.images[0])
    assert torch.equal(one.images[0][4::9].sum(0), plain.images[0].sum(0))  # the fifth of nine is not moved


@pytest.mark.parametrize(("where", "name"), [(where, name) for where, regime in REGIMES.items() for name in regime.entries])
def test_every_entry_runs_and_repeats(where, name):
    regime = replace(REGIMES[where], rounds=3, every=1)
    run = train(regime, regime.entries[name], 0.01, 1.0, 0)
    assert len(run.scores) == 3
    assert run == train(regime, regime.entries[name], 0.01, 1.0, 0)


def test_what_it_took_to_the_target_is_counted_when_three_measurements_are_there(monkeypatch):
    seen = iter([0.9, 0.1, 0.9, 0.9, 0.9, 0.9])
    monkeypatch.setattr(Digits, "accuracy", lambda *_: next(seen))
    regime = replace(REGIMES["hard"], rounds=12, every=2)
    run = train(regime, regime.entries["fedavg"], 0.1, 1.0, 0)
    result = federated_claims_runs.result_of("hard", "fedavg", "85 %", 0.85, run)
    d = len(Digits(regime.task, 0).start)
    assert (result.rounds, result.megabytes_up, result.gradients) == (10, 10 * 5 * 4 * d / 1e6, 10 * 5 * 20 * 5)
    assert run.arrival(0.95) is None
    assert run.arrival(None) == 5


def test_what_diverges_has_learnt_nothing():
    regime = replace(REGIMES["hard"], rounds=50)
    assert train(regime, regime.entries["fedavg"], 1e30, 1.0, 0).end == 0


def test_learning_rates_are_tried_until_the_best_has_a_worse_one_on_either_side(monkeypatch, tmp_path):
    monkeypatch.setattr(federated_claims_runs, "KEPT", tmp_path)
    peak = {1.0: 0.003, 3.0: 0.1}
    asked = []

    def fake(regime, entry, lr, server_lr, seed):
        asked.append(lr)
        return Run(lr, server_lr, seed, 1, [-abs(LRS.index(lr) - LRS.index(peak[server_lr]))] * 3, [0] * 3, [0] * 3)

    monkeypatch.setattr(federated_claims_runs, "train", fake)
    regime = replace(REGIMES["hard"], goals={"end": None})
    runs = Runs("x", regime, regime.entries["fedavg"], float("inf"))
    assert [run.lr for run in runs.tried(1.0)] == [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    assert [run.lr for run in runs.tried(3.0)] == [0.03, 0.1, 0.3]
    assert best(runs.tried(1.0), None).lr == 0.003
    assert len(asked) == 9  # what is kept is not made again


def test_nothing_is_begun_after_the_deadline(monkeypatch, tmp_path):
    monkeypatch.setattr(federated_claims_runs, "KEPT", tmp_path)
    with pytest.raises(TimeoutError, match="hard-fedavg"):
        entry_of("hard", "fedavg", 3, deadline=0.0)


def test_verdicts_are_of_medians(tmp_path):
    one = Result("hard", "scaffold", "85 %", 0.1, 1.0, 0, 0.9, 100, 10.0, 1000)
    scaffold = [one, replace(one, rounds=90), replace(one, rounds=300)]
    scafcom = replace(one, name="scafcom top-1 %", rounds=150, end=0.88, megabytes_up=0.1)
    fedamd = replace(one, name="fedamd p=.5", rounds=101, gradients=500, megabytes_up=None)
    ends = [replace(one, goal="end"), replace(scafcom, goal="end")]
    assert typical(scaffold, "rounds") == 100
    assert typical([fedamd], "megabytes_up") == float("inf")
    results = [*scaffold, scafcom, fedamd, *ends]
    assert verdicts(results) == [
        "hard, 85 %, scafcom top-1 %: 1.5 times scaffold's rounds, 100 times less sent.",
        "hard, 85 %, fedamd p=.5: times rounds and gradients: 1 and 0.5 of scaffold.",
        "hard, end, scafcom top-1 %: -2.0 points of accuracy against scaffold, 100 times less sent.",
    ]
    assert "100/90/300" in line(scaffold)
    curve = Run(0.1, 1.0, 0, 5, [1.0, 2.0], [1, 2], [10, 20])
    draw(results, {"fedamd p=.5": curve}, tmp_path / "picture.png")
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
