"""A run outlives its workers: whoever dies, the others finish, merge, and say who was lost."""

import json
import os
import random
import time
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
from safetensors import safe_open

from disttrain.config import load_config
from disttrain.launch.rank_info import RankInfo
from disttrain.launch.shutdown import DONE, STOPPED, StopRequest
from disttrain.merging.models import workers_models
from disttrain.run import start_session
from disttrain.training.loop import fit
from disttrain.worlds.deadline import Deadline
from tests.training.small_run import train

CONFIG = """
model: {name: mlp, hidden: [32]}
data: {name: digits}
objective: {name: classification}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
strategy: {name: dpsgd}
training: {steps: 200, batch_size: 48, validate_every: 0}
recording: {log_every: 10}
checkpoint: {every: 50}
launch: {threads: 1}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "survival.yaml"
    path.write_text(CONFIG)
    return path


def trained(config, directory, *overrides, floor_seconds=None, step_seconds=0.0):
    """Train in this worker; whether all steps were made, and those this worker made itself."""
    request = StopRequest()
    request.listen()
    session = start_session(load_config(config, [f"run.directory={directory}", *overrides]), RankInfo.from_environment(), request)
    if floor_seconds is not None:
        session.world.deadline = Deadline(floor_seconds)
    before_step, own = session.strategy.before_step, []

    def slow_before_step():
        own.append(time.monotonic())
        time.sleep(step_seconds)
        return before_step()

    session.strategy.before_step = slow_before_step
    with patch("disttrain.recording.recorder.draw_pictures"):
        fit(session)
    return session.completed, len(own), max(later - sooner for sooner, later in pairwise(own))


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def records_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lost_of(folder):
    return [each["rank"] for each in summary_of(folder)["lost_workers"]]


def test_without_a_failure_the_weights_are_those_of_an_ordinary_run(survivors, launched, config, tmp_path):
    ordinary, surviving = tmp_path / "ordinary", tmp_path / "surviving"
    launched(4, train, config, ordinary)
    run = survivors(4, trained_patiently, config, surviving)
    assert run.end().code == DONE, run.accounts()
    assert summary_of(ordinary)["weights_sha256"] == summary_of(surviving)["weights_sha256"]
    assert summary_of(surviving)["lost_workers"] == []


def trained_patiently(config, directory, *overrides):
    return trained(config, directory, *overrides, floor_seconds=30.0)


def trained_slowly(config, directory, *overrides):
    return trained(config, directory, *overrides, step_seconds=0.01)


def kill_four_of_eight(survivors, config, folder, seed):
    draw = random.Random(seed)
    run = survivors(8, trained_slowly, config, folder)
    victims = draw.sample(range(8), 4)
    run.wait_for_step(draw.randrange(1, 90))
    run.kill(victims[0])
    run.wait_for_step(draw.randrange(100, 170))
    for victim in victims[1:]:
        run.kill(victim)
    assert run.end().code == DONE, run.accounts()
    summary = summary_of(folder)
    assert summary["status"] == "finished"
    assert sorted(lost_of(folder)) == sorted(victims)
    assert summary["validation_accuracy"] > 0.9
    assert set(run.results()) == set(range(8)) - set(victims)
    assert not list((folder / "checkpoints").glob("*.partial-*200*"))


def test_one_of_eight_is_killed_and_then_three_more(survivors, config, tmp_path):
    kill_four_of_eight(survivors, config, tmp_path / "run", seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_twenty_times(survivors, config, tmp_path, seed):
    kill_four_of_eight(survivors, config, tmp_path / "run", seed)


def test_worker_0_is_killed_and_another_one_writes_and_the_run_can_be_resumed(survivors, launched, config, tmp_path):
    folder = tmp_path / "run"
    run = survivors(3, trained_slowly, config, folder)
    run.wait_for_step(60)
    run.kill(0)
    assert run.end().code == DONE, run.accounts()
    assert lost_of(folder) == [0]
    steps = [record["step"] for record in records_of(folder)]
    assert steps == sorted(set(steps))
    assert {50, 60, 100, 150, 190, 200} <= set(steps)
    assert records_of(folder)[-1]["validation_accuracy"] > 0.9
    manifest = json.loads((folder / "checkpoints" / "step_00000200" / "manifest.json").read_text())
    assert [model.name for model in workers_models(folder, 200, print)[1]] == ["worker 1", "worker 2"]
    assert sorted(manifest["files"]) == ["rank00001.safetensors", "rank00002.safetensors", "shared.safetensors"]
    launched(3, train, config, folder, "training.resume=auto", "training.steps=220")
    assert summary_of(folder)["steps"] == 220
    assert summary_of(folder)["validation_accuracy"] > 0.9


def trained_with_short_deadline(config, directory, *overrides):
    return trained(config, directory, *overrides, floor_seconds=0.3, step_seconds=0.01)


def test_a_silent_worker_is_ended_and_lost(survivors, config, tmp_path):
    run = survivors(3, trained_with_short_deadline, config, tmp_path / "run", timeout=3.0)
    run.wait_for_step(30)
    run.freeze(1)
    assert run.end().code == DONE, run.accounts()
    (lost,) = summary_of(tmp_path / "run")["lost_workers"]
    assert (lost["rank"], lost["reason"]) == (1, "it did not answer within launch.timeout")


def test_a_thawed_worker_goes_on_where_the_others_are(survivors, config, tmp_path):
    run = survivors(4, trained_with_short_deadline, config, tmp_path / "run", "training.steps=250")
    run.wait_for_step(30)
    run.freeze(0)
    time.sleep(2)
    run.thaw(0)
    assert run.end().code == DONE, run.accounts()
    assert lost_of(tmp_path / "run") == []
    made = {rank: own for rank, (_, own, _) in run.results().items()}
    assert made[0] < 250 - 4
    assert made[1] == made[2] == made[3] == 250
    assert summary_of(tmp_path / "run")["tokens"] == 250 * 48


def trained_with_a_diary(config, directory, *overrides):
    """Train slowly; this worker's parameters after each of its steps, by step."""
    request = StopRequest()
    request.listen()
    session = start_session(load_config(config, [f"run.directory={directory}", *overrides]), RankInfo.from_environment(), request)
    after_step, diary = session.strategy.after_step, {}

    def noting_after_step():
        time.sleep(0.02)
        after_step()
        diary[session.strategy.steps] = session.strategy.x[0].clone()

    session.strategy.after_step = noting_after_step
    with patch("disttrain.recording.recorder.draw_pictures"):
        fit(session)
    return diary


def distances(diaries, step):
    """Of each worker to the mean, after a step."""
    mean = sum(diary[step] for diary in diaries.values()) / len(diaries)
    return {rank: float((diary[step] - mean).norm()) for rank, diary in diaries.items()}


@pytest.mark.parametrize(
    ("strategy", "victim", "times"),
    [
        ("dpsgd", 0, 2),
        pytest.param("dpsgd", 2, 1, marks=pytest.mark.slow),
        pytest.param("quasi_global_momentum", 1, 1, marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_is_started_again_joins_the_others(survivors, config, tmp_path, strategy, victim, times):
    folder = tmp_path / "run"
    plain = ["optimizer.momentum=0"] if strategy == "quasi_global_momentum" else []
    settings = [f"strategy.name={strategy}", f"training.steps={200 + 100 * times}", *plain]
    run = survivors(4, trained_with_a_diary, config, folder, *settings, max_restarts=times)
    for time_ in range(times):
        run.wait_for_step(30 + 100 * time_)
        run.kill(victim)
        run.wait_until_back(victim, time_ + 1)
    assert run.end().code == DONE, run.accounts()
    *_, lost = losses = summary_of(folder)["lost_workers"]
    assert [each["rank"] for each in losses] == [victim] * times
    assert lost["step"] < lost["back_from"] < 180 + 100 * times
    diaries = run.results()
    assert set(diaries) == set(range(4)), "the merge is of all four"
    assert min(diaries[victim]) > 30, "it has gone on where the others were"
    steps = sorted(set.intersection(*map(set, diaries.values())))  # a worker that was behind has skipped some
    alone, together = (distances(diaries, max(s for s in steps if s <= last)) for last in (lost["back_from"], 190 + 100 * times))
    assert alone[victim] > 1.5 * together[victim], (alone, together)
    assert together[victim] < 1.5 * max(distance for rank, distance in together.items() if rank != victim), together
    assert summary_of(folder)["validation_accuracy"] > 0.9
    steps = [record["step"] for record in records_of(folder)]
    assert steps == sorted(set(steps)), "one worker writes at a time"
    manifest = json.loads((folder / "checkpoints" / f"step_{200 + 100 * times:08d}" / "manifest.json").read_text())
    assert len(manifest["files"]) == 5


def trained_after_oversleeping(config, directory, *overrides):
    if os.environ["DISTTRAIN_LIFE"] != "0":
        time.sleep(20)
    return trained_slowly(config, directory, *overrides)


def test_a_worker_that_comes_back_too_late_has_no_part_in_the_result(survivors, config, tmp_path):
    run = survivors(3, trained_after_oversleeping, config, tmp_path / "run", max_restarts=3)
    run.wait_for_step(50)
    run.kill(1)
    assert run.end().code == DONE, run.accounts()
    (lost,) = summary_of(tmp_path / "run")["lost_workers"]
    assert (lost["rank"], lost["back_from"]) == (1, None)
    assert set(run.results()) == {0, 2}


def test_a_stop_request_saves_what_there_is(survivors, config, tmp_path):
    folder = tmp_path / "run"
    run = survivors(3, trained_slowly, config, folder, "training.steps=5000", folder=folder)
    run.wait_for_step(30)
    run.kill(2)
    run.wait_for_step(60)
    run.stop()
    assert run.end().code == STOPPED, run.accounts()
    summary = summary_of(folder)
    assert summary["status"] == "stopped"
    assert 60 <= summary["steps"] < 5000
    newest = max((folder / "checkpoints").glob("step_*"))
    with safe_open(newest / "rank00001.safetensors", framework="pt") as file:
        assert abs(json.loads(file.metadata()["facts"])["counts"]["steps"] - summary["steps"]) < 30


def test_the_last_worker_dies_and_the_run_has_failed(survivors, config, tmp_path):
    run = survivors(2, trained_slowly, config, tmp_path / "run", "training.steps=5000")
    run.wait_for_step(10)
    run.kill(0)
    run.kill(1)
    ending = run.end()
    assert ending.code == 1
    assert "killed by SIGKILL" in ending.reason
    assert not Path(tmp_path / "run" / "summary.json").exists()
