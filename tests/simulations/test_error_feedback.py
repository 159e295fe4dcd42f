"""What error_feedback.py computes, at toy size; its figures themselves are in docs/error_feedback.json."""

import json
import math

import error_feedback
import feedback_claims
import feedback_plm
import feedback_report
import pytest
import torch
from feedback_claims import Floor, LargerStep
from feedback_descent import Descent, Rule, descend, tuned
from feedback_digits import DIGITS, GRIDS, train_digits, training_of
from feedback_problems import logistic_regression, quadratic
from feedback_trainings import CONFIGS, Result, Training, train

from disttrain.compression import EF14, EF21, EControl, Feedback, TopK
from disttrain.config import load_config


@pytest.mark.parametrize("sort_by", ["class", "norm"])
def test_the_logistic_gradient_is_the_losses_and_its_smoothness_bounds_it(sort_by):
    from sklearn.datasets import load_breast_cancer

    features, classes = (torch.from_numpy(each) for each in load_breast_cancer(return_X_y=True))
    features = (features - features.mean(0)) / features.std(0, correction=0)
    features = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
    order = (classes if sort_by == "class" else features.norm(dim=1)).argsort(stable=True)
    problem = logistic_regression(4, sort_by=sort_by)
    x = torch.linspace(-1, 1, 31, dtype=torch.float64, requires_grad=True)
    regulariser = 0.1 * (x**2 / (1 + x**2)).sum()
    shards = [((2 * classes[part] - 1)[:, None] * features[part]) for part in order.tensor_split(4)]
    losses = [torch.nn.functional.softplus(-shard @ x).mean() + regulariser for shard in shards]
    wanted = torch.stack([torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses])
    torch.testing.assert_close(problem.exact(x.detach()), wanted)
    y = x.detach() + 0.1 * torch.ones(31, dtype=torch.float64)
    change = (problem.exact(y) - problem.exact(x.detach())).norm(dim=1) / (y - x.detach()).norm()
    assert (change <= torch.tensor(problem.each, dtype=torch.float64)).all()
    assert problem.smoothness <= sum(problem.each) / 4


def test_without_heterogeneity_the_quadratics_have_one_minimiser():
    assert quadratic(0.0).exact(torch.zeros(100, dtype=torch.float64)).abs().max() == 0
    apart = quadratic(1.0)
    assert apart.exact(apart.start).shape == (10, 100)
    assert len({round(float(row.norm()), 6) for row in apart.exact(torch.zeros(100, dtype=torch.float64))}) == 10


def test_noise_has_the_variance_that_was_asked_for():
    problem = quadratic(1.0, noise=3.0)
    noise = torch.stack([problem.gradients(problem.start) - problem.exact(problem.start) for _ in range(200)])
    assert float(noise.square().sum(-1).mean()) == pytest.approx(9.0, rel=0.02)


def test_a_dense_descent_is_gradient_descent_and_counts_32_bits_an_entry():
    problem = quadratic(1.0, d=10)
    found = descend(problem, Rule("dense", None), TopK(0.1), 0.1, 0.5, rounds=4)
    x, norms = problem.start, []
    for _ in range(5):
        norms.append(float(problem.exact(x).mean(0).square().sum()))
        x = x - 0.05 * problem.exact(x).mean(0)
    assert found.squared_norms == pytest.approx(norms, rel=1e-12)
    assert found.bits == [0, 320, 640, 960, 1280]


def test_bits_are_those_of_payloads_after_a_dense_round_for_what_has_estimates():
    problem, compressor = quadratic(1.0, d=10), feedback_claims.top_k(1, 10)
    sent = 8 * compressor.payload_bytes(10)
    assert descend(problem, Rule("", EF14()), compressor, 0.1, 0.1, rounds=3).bits == [0, sent, 2 * sent, 3 * sent]
    assert descend(problem, Rule("", EF21()), compressor, 0.1, 0.1, rounds=3).bits == [0, 320, 320 + sent, 320 + 2 * sent]


def test_a_descent_that_diverges_has_no_floor_and_one_that_arrives_stops():
    problem, compressor = quadratic(1.0, d=10), feedback_claims.top_k(1, 10)
    lost = descend(problem, Rule("", Feedback()), compressor, 1.0, 1000.0, rounds=100)
    assert math.isinf(lost.floor)
    assert len(lost.bits) == len(lost.squared_norms) < 100
    arrived = descend(problem, Rule("", EControl()), compressor, 1 / problem.smoothness, 0.03, rounds=5000, target=1e-6)
    assert arrived.floor == arrived.squared_norms[-1] <= 1e-6
    assert arrived.rounds_to(1e-6) == len(arrived.bits) - 1
    assert tuned([lost, arrived], 1e-6) is arrived


def test_on_sorted_data_estimates_arrive_where_ef14_stalls():
    found = {each.title: each for each in feedback_claims.compare_on_logistic_regression(400, (64.0,), num_workers=10)}
    assert found["EF21"].floor < 1e-4 * found["EF14"].floor
    assert found["EControl"].floor < 1e-4 * found["EF14"].floor
    assert found["no feedback"].floor > 0.1


def test_the_larger_step_needs_fewer_rounds_and_weights_change_nothing():
    found = feedback_claims.compare_steps("norm", target=1e-1, rounds=3000, num_workers=10)
    assert found.arithmetic > 1.2 * found.quadratic
    assert found.quadratic_rounds / found.arithmetic_rounds == pytest.approx(found.arithmetic / found.quadratic, rel=0.05)
    assert found.weighted_rounds == found.arithmetic_rounds


def test_ef14s_floor_grows_with_heterogeneity():
    floors = feedback_claims.compare_on_quadratics(400, (1 / 16,), (10.0, 100.0), (0.0,), d=20)
    found = {(each.title, each.heterogeneity): each.floor for each in floors}
    assert found["EF14", 100.0] > 30 * found["EF14", 10.0]
    assert found["EControl", 100.0] < 1e-6 * found["EF14", 100.0]


def test_a_training_is_kept_and_its_bytes_are_the_payloads(tmp_path, capsys):
    training = Training(DIGITS, "ef14", 0.05, steps=4)
    first = train(training, tmp_path)
    assert "digits-ef14" in capsys.readouterr().out
    assert train(training, tmp_path) == first
    assert capsys.readouterr().out == ""
    assert math.isfinite(first.loss)
    assert first.wire_bytes / first.ddp_wire_bytes == pytest.approx(0.04, rel=0.01)  # nine times 3 bytes for 1 %; 1.8 · 4
    assert [step for step, _, _ in first.curve] == [1, 2, 3, 4]


def test_all_trainings_have_configs_and_names_of_their_own(tmp_path):
    trainings = [*feedback_plm.trainings(40), *(training_of(method, lrs[0], 40) for method, lrs in GRIDS.items())]
    assert len({training.name for training in trainings}) == len(trainings)
    for training in trainings:
        config = load_config(str(CONFIGS / training.task.config), training.overrides(tmp_path)).config
        assert config.strategy.name == ("ddp" if training.method == "dense" else "compressed")
        config.check_world(training.task.workers)


def test_a_spent_budget_leaves_out_what_was_not_made_and_says_so(tmp_path):
    assert train_digits(tmp_path, deadline=0.0, steps=4)[1:] == (
        [],
        [f"Left out for lack of time: {name} on digits." for name in GRIDS],
    )
    results, left_out = feedback_plm.train_plm(40, tmp_path, deadline=0.0)
    assert results == []
    assert len(left_out) == len(feedback_plm.trainings(40))


def test_what_was_kept_is_read_again(tmp_path):
    made = [LargerStep("class", 1.0, 2.0, math.inf, 3.0, 3.0)]
    assert error_feedback.kept(tmp_path / "steps.json", LargerStep, lambda: made) == made
    assert error_feedback.kept(tmp_path / "steps.json", LargerStep, list) == made


def test_sentences_and_tables_say_what_was_found():
    descents = [
        Descent("dense", 1.0, 1.0, [0, 320, 640], [1.0, 1e-4, 1e-9], 0.0),
        Descent("no feedback", 1.0, 1.0, [0, 72], [1.0, 0.5], 0.0),
        Descent("EF14", 1.0, 1.0, [0, 72], [1.0, 0.1], 0.0),
        Descent("EF21", 1.0, 1.0, [0, 64], [1.0, 1e-9], 0.0),
        Descent("EControl", 1.0, 1.0, [0, 64], [1.0, 0.2], 0.0),
    ]
    arrived, missed = feedback_report.logistic_sentences(descents)
    assert "after 0.1 kbit, dense descent after 1" in arrived
    assert "does not reproduce: it ended at 2.0e-01" in missed
    assert "| EF14 | 1 | – | – | 1.0e-01 |" in feedback_report.logistic_table(descents)
    exact = {"EF14": 1.0, "EControl": 1e-9}
    floors = [Floor(title, zeta, 0.0, 1.0, value * zeta**2) for title, value in exact.items() for zeta in (1.0, 10.0)]
    noisy = [Floor(rule.title, zeta, 1.0, 1.0, 1.0) for rule in feedback_claims.NOISY_RULES for zeta in (1.0, 10.0)]
    growth, econtrol, momentum = feedback_report.quadratic_sentences(floors + noisy)
    assert "to the power 2.00" in growth
    assert "does not reproduce" in econtrol  # all rest at 1
    assert "does not reproduce" in momentum
    assert "σ=1 ζ=10" in feedback_report.quadratic_table(floors + noisy)


def test_the_gap_of_the_plm_is_of_plain_ef14_to_the_same_optimizers_ddp():
    losses = {"dense": 2.0, "ef14": 2.5, "econtrol": 2.25}
    made = [training for training in feedback_plm.trainings(40) if training.compressor == "block_top_k"]
    results = [Result(each, losses.get(each.method, 3.0) + 0.01 * each.warmup_steps, None, 1, 100, 1.0, []) for each in made]
    for sentence, optimizer in zip(feedback_report.plm_sentences(results)[:2], ("AdamW", "Muon"), strict=True):
        assert f"PLM with {optimizer}, 40 steps: EF14 is +0.50 nats at 1%, +0.50 nats at 3%" in sentence
        assert "best of all that was tried, EControl 1%, 2 dense steps first" in sentence
    assert "| AdamW | EControl 1%, 2 dense steps first | 0.004 | 2.2700 | +0.270 |" in feedback_report.plm_table(results)


@pytest.mark.parametrize(("accuracy", "judged"), [(0.966, "not within"), (0.968, "within"), (0.99, "within")])
def test_the_verdict_on_digits_is_half_a_point(accuracy, judged):
    results = [Result(Training(DIGITS, m, 0.1, 4), 0.1, a, 4, 100, 1.0, []) for m, a in (("dense", 0.972), ("ef14", accuracy))]
    sentence, _ = feedback_report.digits_sentences(results)
    assert f", {judged} 0.5" in sentence
    assert "4.00%" in feedback_report.digits_table(results)


def test_the_reports_numbers_are_all_in_json():
    each = error_feedback.summary(Descent("EF14", 1.0, 1.0, [0, 72], [1.0, math.inf], 0.0))
    assert json.loads(json.dumps(error_feedback.finite(each)))["floor"] is None
