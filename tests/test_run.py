"""The user API in a complete script: someone's own module, data and loop."""

import functools
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import disttrain
from disttrain.component import UserError
from disttrain.recording.metrics import read_metrics

SCRIPT = Path(__file__).parents[1] / "configs" / "your_own_script.py"


def run_script(*overrides):
    sys.argv = [str(SCRIPT), *overrides]
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 0


@pytest.mark.parametrize("strategy", ["ddp", "local"])
def test_the_example_script_trains_stops_and_resumes_exactly(launched, tmp_path, strategy):
    def overrides(name, *more):
        return (f"run.directory={tmp_path / name}", f"strategy.name={strategy}", *more)

    launched(2, run_script, *overrides("straight"))
    launched(2, run_script, *overrides("halves", "training.stop_after=130"))
    launched(2, run_script, *overrides("halves", "training.resume=auto"))
    straight, halves = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("straight", "halves"))
    assert straight["weights_sha256"] == halves["weights_sha256"]
    assert [record["accuracy"] for record in read_metrics(tmp_path / "straight" / "metrics.jsonl") if "accuracy" in record][
        -1
    ] > 0.95


def epoch_of_indices(directory, config):
    run = disttrain.Run.from_config(config, [f"run.directory={directory}"])
    model, optimizer = run.prepare(nn.Linear(1, 1))
    seen = []
    for batch in run.shard(list(range(40))):
        seen.append(batch.tolist())
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        run.record(loss=0.0)
    run.finish()
    return seen


def test_shards_are_disjoint_and_complete_in_every_epoch(launched, tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("training: {steps: 10, batch_size: 8}\nrecording: {log_every: 5}\n")
    first, second = launched(2, epoch_of_indices, tmp_path / "run", config)
    steps = [a + b for a, b in zip(first, second, strict=True)]
    for epoch in (steps[:5], steps[5:]):
        assert sorted(index for step in epoch for index in step) == list(range(40))
    assert steps[:5] != steps[5:]


def with_dropout(directory, config, *overrides):
    """A loop that never looks at `should_stop`, with dropout and data from a loader."""
    run = disttrain.Run.from_config(config, [f"run.directory={directory}", *overrides])
    model, optimizer = run.prepare(nn.Sequential(nn.Linear(1, 32), nn.Dropout(0.5), nn.Linear(32, 1)))
    model.module[2].eval()
    for batch in run.shard(list(range(40))):
        model(batch[:, None].float()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        run.record(loss=0.0)
        with run.evaluating():
            pass
    assert not model.module[2].training, "a part in evaluation mode stays there"
    run.finish()
    return json.loads((directory / "summary.json").read_text())


def test_dropout_resumes_exactly_and_no_step_too_many_is_made(launched, tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("training: {steps: 10, batch_size: 8}\nrecording: {log_every: 5}\n")
    straight = launched(1, with_dropout, tmp_path / "straight", config)[0]
    stopped = launched(1, with_dropout, tmp_path / "run", config, "training.stop_after=4")[0]
    again = launched(1, with_dropout, tmp_path / "run", config, "training.stop_after=4", "training.resume=auto")[0]
    assert (stopped["steps"], again["steps"], again["weights_sha256"]) == (4, 4, stopped["weights_sha256"])
    ended = launched(1, with_dropout, tmp_path / "run", config, "training.resume=auto")[0]
    assert (ended["status"], ended["weights_sha256"]) == ("finished", straight["weights_sha256"])


def refused(config, *overrides, optimizer=False, scaler=None):
    try:
        run = disttrain.Run.from_config(config, overrides)
        module = nn.Linear(2, 2)
        run.prepare(module, torch.optim.SGD(module.parameters(), 0.1) if optimizer else None, scaler=scaler)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {name: plm}", "sets model"),
        ("data: {name: python_source}", "sets data"),
        ("partition: {name: iid}", "sets partition"),
        ("training: {gradient_accumulation: 2}", "sets training.gradient_accumulation"),
        ("training: {precision: bf16}", "sets training.precision"),
    ],
)
def test_settings_that_an_own_loop_would_ignore_are_refused(tmp_path, text, words):
    config = tmp_path / "own.yaml"
    config.write_text(text)
    assert words in refused(config)


def wrong_order(directory, config):
    """What a script is told that calls things out of order."""
    run = disttrain.Run.from_config(config, [f"run.directory={directory}"])
    told = []
    for attempt in (
        run.resume,
        lambda: run.prepare(nn.Linear(1, 1)),
        lambda: run.prepare(nn.Linear(1, 1)),
        lambda: run.record(loss=1.0),
    ):
        try:
            attempt()
        except (UserError, RuntimeError) as error:
            told.append(str(error))
    return told


def test_calls_out_of_order_are_told_apart(launched, tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("training: {steps: 10, batch_size: 8}\n")
    first, second, third = launched(1, wrong_order, tmp_path / "run", config)[0]
    assert "call prepare() first" in first
    assert "prepare() was called already" in second
    assert "once after each optimizer.step()" in third


def test_a_mistake_in_a_script_is_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "trainig.steps=3"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert 'did you mean "training"' in done.stderr
    assert "Traceback" not in done.stderr


def test_two_optimizers_are_refused(launched, tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text(f"optimizer: {{name: sgd, lr: 0.1}}\nrun: {{directory: {tmp_path / 'run'}}}\n")
    assert "only one can be used" in launched(1, functools.partial(refused, optimizer=True), config)[0]


def test_a_scaler_that_would_make_rounds_unequal_is_refused(launched, tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text(f"strategy: {{name: co2}}\nrun: {{directory: {tmp_path / 'run'}}}\n")
    scaler = torch.amp.GradScaler("cpu")
    assert "use bfloat16" in launched(1, functools.partial(refused, optimizer=True, scaler=scaler), config)[0]
