"""wandb and TensorBoard get the records; whatever is wrong with them, training does not hear of it."""

import sys
import types

import pytest

from disttrain.recording.metrics import read_metrics
from disttrain.recording.trackers import TensorBoardTracker, WandbTracker
from tests.training.small_run import train, write_config


class FakeRun:
    """Remembers what it is given; fails from the n-th call on."""

    def __init__(self, failing_from=1000):
        self.logged, self.summary, self.failing_from, self.finished = [], {}, failing_from, False

    def log(self, values, step):
        if len(self.logged) + 1 >= self.failing_from:
            raise ConnectionError("the dog ate the network\nand more")
        self.logged.append((step, values))

    def finish(self):
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


def test_a_resumed_offline_run_goes_on_under_its_id(launched, tmp_path):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    config, wandb = write_config(tmp_path), "recording.wandb={project: test, mode: offline}"
    launched(1, train, config, tmp_path / "run", wandb, "training.stop_after=10", timeout=120)
    launched(1, train, config, tmp_path / "run", wandb, "training.resume=auto", timeout=120)
    runs = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert {run.stem for run in runs} == {f"run-{(tmp_path / 'run' / 'wandb_id').read_text()}"}
    assert len({run.parent for run in runs}) == 2
    assert "wandb is off" not in (tmp_path / "run" / "logs" / "console.log").read_text()


def scalars(directory):
    """Tag to [(step, value)] as TensorBoard shows it."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(directory))
    accumulator.Reload()
    return {tag: [(each.step, each.value) for each in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_tensorboard_shows_what_metrics_jsonl_has(launched, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    launched(1, train, write_config(tmp_path), tmp_path / "run", "recording.tensorboard=true", timeout=120)
    shown = scalars(tmp_path / "run" / "tensorboard")
    records = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    for key in ("loss", "validation_loss", "wire_bytes", "tokens"):
        expected = [(record["step"], pytest.approx(record[key], rel=1e-6)) for record in records if key in record]
        assert shown[key] == expected


def test_tensorboard_forgets_what_a_resumed_run_makes_again(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    first = TensorBoardTracker(tmp_path, {}, 0, pytest.fail)
    for step in (5, 10, 15):
        first.log({"step": step, "loss": 1.0, "exposed_seconds": None, "compute": "real", "bad": float("nan")})
    second = TensorBoardTracker(tmp_path, {}, 10, pytest.fail)  # killed after step 15, its checkpoint is of step 10
    second.log({"step": 15, "loss": 2.0})
    second.finish({})
    assert scalars(tmp_path / "tensorboard") == {"loss": [(5, 1.0), (10, 1.0), (15, 2.0)]}


def test_a_tensorboard_that_fails_is_warned_of_once(monkeypatch, tmp_path):
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    warnings = []
    tracker = TensorBoardTracker(tmp_path, {}, 0, warnings.append)
    for step in range(3):
        tracker.log({"step": step, "loss": 1.0})
    tracker.finish({})
    (warning,) = warnings
    assert warning.startswith("TensorBoard is off for the rest of this run (")
