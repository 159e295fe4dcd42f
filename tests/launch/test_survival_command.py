"""`disttrain train --on-failure continue` as a user sees it."""

import json
import os
import signal
import time

import pytest

from disttrain.cli import main
from tests.launch.test_train_command import Training, alive

CONFIG = """
model: {name: mlp, hidden: [32]}
data: {name: digits}
objective: {name: classification}
optimizer: {name: sgd, lr: 0.05}
strategy: {name: dpsgd}
training: {steps: 1000, batch_size: 6, validate_every: 0}
recording: {log_every: 1}
launch: {threads: 1}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "survival.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["strategy.name=ddp"], "strategy: name=ddp cannot go on when a worker is lost"),
        (["strategy.topology.name=exponential"], "take a topology whose links go both ways"),
        (["strategy.delay=1", "strategy.mixing_rate=0.5"], "delay=1 and group_size=1 count on every worker"),
        (["strategy.group_size=2"], "delay=0 and group_size=2 count on every worker"),
        (["strategy.communication.name=triggered"], "communication.name=triggered needs the answers of all peers"),
    ],
)
def test_what_could_not_go_on_is_refused_before_anything_starts(config, tmp_path, capsys, more, complaint):
    arguments = ["train", str(config), "--workers", "6", "--on-failure", "continue", f"run.directory={tmp_path / 'run'}", *more]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_killed_worker_is_named_and_the_run_succeeds_and_leaves_nothing(config, tmp_path):
    training = Training(config, tmp_path / "run", "--on-failure", "continue", "--workers", 3)
    training.wait_for_step(50)
    workers = training.workers()
    assert sorted(workers) == [0, 1, 2]
    os.kill(workers[0], signal.SIGKILL)
    code, _, error = training.end(timeout=120)
    assert code == 0, error
    assert error.startswith("disttrain: rank 0 is lost, about step ")
    assert "it was killed by SIGKILL; 2 of 3 workers go on" in error
    (lost,) = json.loads((tmp_path / "run" / "summary.json").read_text())["lost_workers"]
    assert lost["rank"] == 0
    assert not [pid for pid in workers.values() if alive(pid)]


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_is_back(config, tmp_path):
    more = ("--on-failure", "continue", "--max-restarts", "1", "--workers", 3, "training.steps=1000000")
    training = Training(config, tmp_path / "run", *more)
    training.wait_for_step(50)
    os.kill(training.workers()[1], signal.SIGKILL)
    second_life, deadline = tmp_path / "run" / "logs" / "rank1.1.log", time.monotonic() + 60
    while not (second_life.exists() and "rank 1 is here again, with rank 2's state of step" in second_life.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)  # to be let in
    training.process.terminate()
    code, _, error = training.end(timeout=60)
    assert code == 143, error
    assert "2 of 3 workers go on, and it is started again (0 restarts left)" in error
    (lost,) = json.loads((tmp_path / "run" / "summary.json").read_text())["lost_workers"]
    assert lost["rank"] == 1
    assert lost["back_from"] > lost["step"]


def test_without_the_launcher_its_workers_end(config, tmp_path):
    training = Training(config, tmp_path / "run", "--on-failure", "continue", "training.steps=100000")
    training.wait_for_step(20)
    workers = training.workers()
    training.process.kill()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers.values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
