"""wandb gets the records, offline; whatever is wrong with it, training does not hear of it."""

import sys
import types

import pytest

from disttrain.recording.trackers import WandbTracker
from tests.training.small_run import train, write_config


class FakeRun:
    """Remembers what it is given; fails from the n-th call on."""

    def __init__(self, failing_from=1000):
        self.logged, self.summary, self.failing_from, self.finished = [], {}, failing_from, False

    def log(self, values, step):
        if len(self.logged) + 1 >= self.failing_from:
            raise ConnectionError("the dog ate the network\nand more")
        self.logged.append((step, values))

    def finish(self, quiet):
        self.finished = True


def tracker(monkeypatch, tmp_path, run, warnings):
    options = []
    fake = types.SimpleNamespace(init=lambda **given: options.append(given) or run, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return WandbTracker("p", "offline", tmp_path, {"a": 1}, warnings.append), options


def test_records_and_summary_arrive(monkeypatch, tmp_path):
    run, warnings = FakeRun(), []
    wandb, options = tracker(monkeypatch, tmp_path, run, warnings)
    wandb.log({"step": 5, "loss": 1.0})
    wandb.finish({"status": "finished"})
    assert run.logged == [(5, {"loss": 1.0})]
    assert run.summary == {"status": "finished"}
    assert run.finished
    assert not warnings
    assert options[0]["config"] == {"a": 1}


def test_a_resumed_run_keeps_its_id(monkeypatch, tmp_path):
    ids = [tracker(monkeypatch, tmp_path, FakeRun(), [])[1][0]["id"] for _ in range(2)]
    assert ids[0] == ids[1]


def test_a_failing_tracker_is_warned_of_once_and_left_alone(monkeypatch, tmp_path):
    warnings = []
    wandb, _ = tracker(monkeypatch, tmp_path, FakeRun(failing_from=2), warnings)
    for step in range(5):
        wandb.log({"step": step, "loss": 1.0})
    wandb.finish({})
    assert warnings == ["wandb is off for the rest of this run (ConnectionError: the dog ate the network)"]


def test_a_missing_wandb_is_warned_of_and_training_goes_on(monkeypatch, tmp_path):
    warnings = []
    monkeypatch.setitem(sys.modules, "wandb", None)
    WandbTracker("p", "online", tmp_path, {}, warnings.append).log({"step": 1})
    assert len(warnings) == 1
    assert "wandb is off" in warnings[0]


def test_an_offline_run_leaves_its_files_in_the_run_folder(launched, tmp_path):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    config = write_config(tmp_path)
    launched(1, train, config, tmp_path / "run", "recording.wandb={project: test, mode: offline}", timeout=120)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
