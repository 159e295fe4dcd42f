"""Ray's actors end with torchrun's weights, fail, stop and start again together, and leave nothing running."""

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from disttrain.component import UserError
from disttrain.launchers.ray_cluster import _check_options, _import_ray, _parser
from disttrain.launchers.ray_supervision import in_rank_order, ranks, reason_of_death, variables
from disttrain.launchers.ray_worker import Place
from tests.launch.launchers import (
    LONG,
    RAY,
    STRATEGIES,
    Launched,
    digest,
    finished,
    status,
    write_broken_config,
    write_config,
)
from tests.training.small_run import train


def place(node, *gpus):
    return Place(node, f"10.0.0.{node}", f"host{node}", gpus)


@pytest.mark.parametrize("strategy", ["co2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "ef21"))])
def test_ray_leads_to_torchruns_weights(launched, tmp_path, strategy):
    pytest.importorskip("ray")
    config, options = write_config(tmp_path), STRATEGIES[strategy]
    code, output, error = finished([*RAY, config, f"run.directory={tmp_path / 'ray'}", *options], timeout=300)
    assert code == 0, error
    assert "2 workers on cpu" in output
    _, summary = launched(2, train, config, tmp_path / "torchrun", *options)[0]
    assert digest(tmp_path / "ray") == summary["weights_sha256"]


@pytest.mark.slow
def test_an_actor_that_raises_ends_all_in_45_seconds_with_rank_and_reason(tmp_path):
    run = Launched([*RAY, write_broken_config(tmp_path), f"run.directory={tmp_path / 'run'}"])
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "failure.rank1.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    code, _, error = run.end(timeout=45)
    assert code == 1
    assert "disttrain: rank 1 failed: ArithmeticError: the moon is in the seventh house" in error
    assert "ArithmeticError" in (tmp_path / "run" / "logs" / "rank1.log").read_text()
    run.assert_nothing_is_left()


@pytest.mark.slow
def test_an_actor_that_is_killed_ends_all_with_its_rank_and_reason(tmp_path):
    run = Launched([*RAY, write_config(tmp_path), f"run.directory={tmp_path / 'run'}", *LONG])
    run.wait_for_step(tmp_path / "run", 3)
    os.kill(run.processes("ray::RayWorker")[0], signal.SIGKILL)
    code, _, error = run.end(timeout=45)
    assert code == 1
    assert "failed: its Ray actor died: Worker unexpectedly exits" in error
    run.assert_nothing_is_left()


@pytest.mark.slow
def test_an_actor_that_is_killed_is_started_again_to_the_same_result(launched, tmp_path):
    config = write_config(tmp_path)
    options = ("training.steps=150", "training.validate_every=0", "recording.log_every=1")
    run = Launched([*RAY, "--max-restarts", "1", config, f"run.directory={tmp_path / 'run'}", *options])
    run.wait_for_step(tmp_path / "run", 12)
    os.kill(run.processes("ray::RayWorker")[0], signal.SIGKILL)
    code, output, error = run.end(timeout=300)
    assert code == 0, error
    assert "starting all workers again, 1 restart left" in error
    assert "continuing from step" in output
    run.assert_nothing_is_left()
    launched(2, train, config, tmp_path / "straight", *options)
    assert digest(tmp_path / "run") == digest(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_saved_and_leaves_nothing(tmp_path, number):
    run = Launched([*RAY, write_config(tmp_path), f"run.directory={tmp_path / 'run'}", *LONG])
    run.wait_for_step(tmp_path / "run", 3)
    run.press_ctrl_c() if number == signal.SIGINT else run.process.terminate()
    code, _, error = run.end(timeout=45)
    assert code == 143, error
    assert f"stopped by {number.name} and saved" in error
    assert status(tmp_path / "run") == "stopped"
    run.assert_nothing_is_left()


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing(tmp_path):
    run = Launched([*RAY, write_config(tmp_path), f"run.directory={tmp_path / 'run'}", *LONG])
    run.wait_for_step(tmp_path / "run", 3)
    run.process.kill()
    run.process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while run.processes("ray::RayWorker") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not run.processes("ray::RayWorker")
    run.assert_nothing_is_left(timeout=150)  # Ray's own agents look for their parent now and then


@pytest.mark.slow
def test_a_mistake_that_only_workers_find_is_told_once_with_exit_code_2(tmp_path):
    arguments = [write_config(tmp_path), f"run.directory={tmp_path / 'run'}", "data.sequence_length=4096"]
    code, output, error = finished([*RAY, *arguments], timeout=300)
    assert code == 2, error
    assert (output + error).count("the validation data: 2774 tokens") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_no_room_is_told_with_what_there_is(tmp_path):
    arguments = ["--spread", "--wait", "5s", write_config(tmp_path), f"run.directory={tmp_path / 'run'}"]
    code, _, error = finished([*RAY, *arguments], timeout=300)
    assert code == 2, error
    assert "found no room within 5 s for 2 workers of 1 CPU, each on a node of its own: nodes: 1, with 2 CPU in all" in error


@pytest.mark.slow
def test_ctrl_c_ends_the_wait_for_room(tmp_path):
    run = Launched([*RAY, "--spread", "--wait", "10min", write_config(tmp_path), f"run.directory={tmp_path / 'run'}"])
    deadline = time.monotonic() + 150
    while not run.processes("ray::") and time.monotonic() < deadline:
        time.sleep(0.5)
    run.press_ctrl_c()
    code, _, error = run.end(timeout=45)
    assert code == 1, error
    assert "stopped by SIGINT before there was anything to save" in error
    run.assert_nothing_is_left()


def test_workers_of_one_node_have_neighbouring_ranks():
    places = [place("2"), place("5"), place("2"), place("1"), place("5")]
    order = in_rank_order(places)
    assert order == [0, 2, 1, 4, 3]
    infos = ranks([places[index] for index in order])
    assert [(each.rank, each.local_rank, each.local_world_size) for each in infos] == [
        (0, 0, 2), (1, 1, 2), (2, 0, 2), (3, 1, 2), (4, 0, 1),
    ]  # fmt: skip
    assert {each.world_size for each in infos} == {5}


def test_workers_see_the_gpus_of_their_node_and_meet_where_all_can():
    places = [place("1", "3"), place("1", "5"), place("2", "0")]
    told = [variables(info, places, 4321) for info in ranks(places)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in told] == ["3,5", "3,5", "0"]
    assert {(each["MASTER_ADDR"], each["MASTER_PORT"]) for each in told} == {("10.0.0.1", "4321")}
    alone = variables(ranks(places[:2])[0], places[:2], 4321)
    assert alone["MASTER_ADDR"] == "127.0.0.1"
    assert "CUDA_VISIBLE_DEVICES" not in variables(ranks([place("1")])[0], [place("1")], 1)


def test_a_death_is_one_line_without_guesses():
    error = Exception(
        "The actor died.\n\tpid: 7\nWorker exit type: SYSTEM_ERROR Worker exit detail: it ended. Some common causes: x"
    )
    assert reason_of_death(error) == "its Ray actor died: it ended"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", "0"), "--workers must be at least 1, got 0"),
        (("--workers", "2", "--max-restarts", "-1"), "--max-restarts must be at least 0, got -1"),
        (("--workers", "2", "--wait", "soon"), "--wait: "),
    ],
)
def test_options_that_cannot_be_are_refused(monkeypatch, arguments, words):
    monkeypatch.setattr(os, "environ", {})
    with pytest.raises(UserError, match=words):
        _check_options(_parser().parse_intermixed_args([*arguments, "c.yaml"]))


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"two launchers .*ray_cluster.py.* torchrun \(RANK=0, WORLD_SIZE=2\)"),
        ({"PMI_SIZE": "2"}, r"MPICH's mpirun \(PMI_SIZE=2\) started several processes.*to be started once"),
    ],
)
def test_a_launcher_around_it_is_refused(monkeypatch, environment, words):
    monkeypatch.setattr(os, "environ", environment)
    with pytest.raises(UserError, match=words):
        _check_options(SimpleNamespace(workers=2, cpus=1, max_restarts=0, wait="1s"))


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'disttrain\[ray\]'"):
        _import_ray()
