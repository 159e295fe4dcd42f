"""What co2.py computes, at toy size; its figures themselves are in docs/local_updates.json."""

import json
import math
import time

import co2
import co2_plan
import co2_report
import torch
from co2_plan import CLASSIFIED, CO2, CO2_DEFAULT, COCOD, DDP, DECISIVE, INDICATIVE, LOCAL_SGD, Findings, key
from co2_rules import Ahead
from co2_task import draw
from co2_trainings import CLASSIFIER, PLM
from feedback_trainings import CONFIGS
from strategy_trainings import Method, Result, Trainer, Training, train

from disttrain.config import load_config
from disttrain.parameters import Layout, Unit
from disttrain.strategies.local_updates import PredictedMean
from disttrain.worlds import StackedWorld


def run_quadratic(strategy, rounds=6, n=4, d=5):
    """Where the workers are after each round of gradient descent on quadratics of their own, and the result."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = torch.zeros(n, d, dtype=torch.float64)
    strategy.begin(x, Layout((Unit("x", (d,), 0),), d), StackedWorld(n, debug=True))
    places = []
    for _ in range(rounds * strategy.period):
        x -= 0.1 * (x - targets)
        strategy.after_step()
        if strategy.steps % strategy.period == 0:
            places.append(x.clone())
    return [*places, strategy.finish().clone()]


def test_a_pull_of_one_without_lead_goes_on_from_the_last_mean_and_ends_at_the_mean():
    strategy = Ahead(3, pull=1.0, smoothing=0.0, warmup_rounds=0, lead=0.0)
    places = run_quadratic(strategy, rounds=2)
    torch.testing.assert_close(places[0], torch.zeros_like(places[0]))
    contracted = 1 - 0.9**3
    targets = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(places[1], contracted * targets.mean(0).expand(4, 5))
    torch.testing.assert_close(places[2], contracted * targets.mean(0)[None])  # from zero again: nothing had landed


def test_with_a_lead_of_one_it_is_the_library_s():
    ours = run_quadratic(Ahead(3, 0.65, 0.7, 1, lead=1.0))
    torch.testing.assert_close(ours, run_quadratic(PredictedMean(3, warmup_rounds=1)), rtol=0, atol=0)


def test_no_model_of_the_task_can_do_better_than_was_said():
    inputs, labels = draw()
    assert inputs.shape == (66_000, 16)
    assert labels.bincount().min() > 1000


def test_every_training_of_the_plan_is_a_valid_config(tmp_path):
    for entry in {*CLASSIFIED, *DECISIVE, *INDICATIVE}:
        for setting in entry.grid or ("",):
            method = entry.method.having(setting) if setting else entry.method
            for task in (CLASSIFIER, PLM):
                overrides = Training(task, method, 12, 0.01, 0, 720).overrides(tmp_path / "run")
                assert load_config(str(CONFIGS / task.config), overrides).config.strategy.name == method.strategy


def test_titles_are_unique_and_the_default_is_the_library_s():
    titles = [entry.title for entry in {*CLASSIFIED, *DECISIVE, *INDICATIVE}]
    assert len(set(titles)) == len(titles)
    built = load_config(str(CONFIGS / "digits.yaml"), ["strategy.name=co2"]).config.strategy
    for setting in CO2_DEFAULT.method.settings:
        name, value = setting.split("=")
        assert str(getattr(built, name)) == value


def test_a_training_is_made_once_and_left_out_when_time_is_short(tmp_path):
    training = Training(CLASSIFIER, Method("co2", ("outer_momentum=0.2",)), 4, 0.01, 0, 16)
    assert train(training, tmp_path, deadline=time.time() - 1) is None
    first = train(training, tmp_path, math.inf)
    assert first is not None
    assert [step for step, _ in first.curve] == [16]
    assert math.isfinite(first.loss)
    written = (tmp_path / training.name / "ended.json").stat().st_mtime_ns
    assert train(training, tmp_path, deadline=0.0) == first
    assert (tmp_path / training.name / "ended.json").stat().st_mtime_ns == written


def test_what_there_is_no_time_for_is_left_out(tmp_path):
    trainer = Trainer(tmp_path, time.time() - 1, at_once=1)
    found = co2_plan.compare(trainer)
    trainer.close()
    assert found == Findings([], {}, {}, {})
    assert any("plm-co2" in name for name in trainer.left_out)


def results(entry, losses):
    """Made up, of seeds 0, 1, …"""
    method = entry.method.having(entry.grid[0]) if entry.grid else entry.method
    made = [(Training(PLM, method, 12, 0.01, seed, 720), loss) for seed, loss in enumerate(losses)]
    return [Result(training, loss, 10, 1.0, [], {}) for training, loss in made]


def made_up(**plm):
    """Findings with losses of the PLM, and of the classifier's DDP and CO2."""
    rows = {entry.title: results(entry, losses) for entry, losses in plm["plm"].items()}
    classifier = {key(entry, period): results(entry, [1.0, 1.1, 1.2]) for entry in CLASSIFIED for period in (12, 48)}
    return Findings([], {}, classifier, rows)


def test_targets_are_judged_over_the_seeds_that_both_have():
    plm = {DDP: [1.0, 1.0, 1.0], LOCAL_SGD: [1.1, 1.1, 1.1], CO2_DEFAULT: [1.15, 1.25]}
    (said,) = co2_report.targets(made_up(plm=plm).plm)
    assert "+0.100 nats from local SGD and +0.200 from DDP over 2 seeds" in said
    assert "holds" in said


def test_a_diverged_seed_fails_the_targets():
    plm = {DDP: [1.0, 1.0], LOCAL_SGD: [1.1, 1.1], CO2_DEFAULT: [1.15, math.inf]}
    (said,) = co2_report.targets(made_up(plm=plm).plm)
    assert "does not hold" in said


def test_tables_sentences_json_and_picture_come_of_made_up_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(co2, "DOCS", tmp_path)
    plm = {DDP: [1.0, 1.0], LOCAL_SGD: [1.1, 1.1], COCOD: [1.12, 1.12], CO2[0]: [1.6, math.inf], CO2_DEFAULT: [1.2, 1.2]}
    co2.write(made_up(plm=plm), ["one"])
    printed = capsys.readouterr().out
    assert "CoCoD-SGD is +0.020 nats from local SGD (+0.020, +0.020), within 0.05" in printed
    assert "Left out for lack of time: one." in printed
    report = json.loads((tmp_path / "local_updates.json").read_text())
    assert report["plm"]["CO2 β=0.2, no penalty"][1]["loss"] is None
    assert (tmp_path / "local_updates.png").stat().st_size > 10_000
