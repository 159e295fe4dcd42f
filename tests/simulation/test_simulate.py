"""``disttrain simulate``: the same config gives the same weights as processes, and a run folder like any other."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from disttrain.cli import main
from disttrain.component import UserError
from disttrain.config import load_config
from disttrain.data import make_order
from disttrain.recording.folder import RunFolder
from disttrain.recording.metrics import read_metrics
from tests.training.small_run import train, write_config

DIGITS = """
model: {name: mlp}
data: {name: digits}
objective: {name: classification}
optimizer: {name: sgd, lr: 0.1}
training: {steps: 20, batch_size: 16, validate_every: 10, validation_batches: 2}
recording: {log_every: 5}
"""


def digits_config(folder: Path) -> Path:
    path = folder / "digits.yaml"
    path.write_text(DIGITS)
    return path


def simulate(config, directory, *arguments):
    """Run the command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["simulate", str(config), f"run.directory={directory}", "launch.threads=1", *arguments])
    return ended.value.code


def summary_of(directory):
    return json.loads((directory / "summary.json").read_text())


SAME_WEIGHTS = {  # overrides, and the method of gradients that a process's equal bitwise
    "MLP": (digits_config, 2, "vmap", ()),
    "MLP, local, dirichlet": (digits_config, 4, "vmap",
                              ("strategy.name=local", "partition.name=dirichlet", "partition.on_small=repair")),
    "MLP, AdamW, cosine": (digits_config, 2, "vmap", ("optimizer.name=adamw", "schedule.name=cosine")),
    "MLP, Muon, 16 bits": (digits_config, 4, "vmap", ("optimizer.name=muon", "strategy.name=ddp_cast")),
    "MLP, COSMOS": (digits_config, 2, "vmap", ("optimizer.name=cosmos", "optimizer.rank=4")),
    "BatchNorm, accumulated": (digits_config, 2, "loop",
                               ("model.norm=batch", "training.gradient_accumulation=2", "strategy.buffers=average")),
    "dropout, local": (digits_config, 2, "loop", ("model.dropout=0.3", "strategy.name=local")),
    "CNN": (digits_config, 2, "loop", ("model.name=cnn",)),
    "MLP, CO2 of pairs": (digits_config, 4, "vmap", ("strategy.name=co2", "strategy.period=5", "strategy.group_size=2")),
    "PLM": (write_config, 2, "vmap", ("checkpoint.every=0",)),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME_WEIGHTS)
def test_simulated_weights_are_the_processes_weights(launched, tmp_path, case):
    write, workers, method, overrides = SAME_WEIGHTS[case]
    config = write(tmp_path)
    real = launched(workers, train, config, tmp_path / "real", "launch.threads=1", *overrides)[0][1]
    assert simulate(config, tmp_path / "rows", "--workers", str(workers), "--gradients", method, *overrides) == 0
    simulated = summary_of(tmp_path / "rows")
    assert simulated["weights_sha256"] == real["weights_sha256"]
    if "BatchNorm" not in case:  # there every process validates with its own statistics, rows with worker 0's
        assert simulated["validation_loss"] == pytest.approx(real["validation_loss"], rel=1e-5)
    for key in ("status", "steps", "tokens", "workers", "strategy", "optimizer", "model", "ddp_wire_bytes"):
        assert simulated[key] == real[key], key
    start_and_agreement = 30_000
    assert simulated["wire_bytes"] == pytest.approx(real["wire_bytes"], rel=0.03, abs=start_and_agreement)


def test_a_run_begins_from_anothers_result_wherever_it_is_run(launched, tmp_path):
    config, started = digits_config(tmp_path), f"training.initial_weights={tmp_path / 'first'}"
    assert simulate(config, tmp_path / "first", "--workers", "2") == 0
    real = launched(2, train, config, tmp_path / "real", "launch.threads=1", "training.steps=4", started)[0][1]
    assert simulate(config, tmp_path / "rows", "--workers", "2", "--gradients", "vmap", "training.steps=4", started) == 0
    assert summary_of(tmp_path / "rows")["weights_sha256"] == real["weights_sha256"]
    assert real["validation_loss"] < summary_of(tmp_path / "first")["validation_loss"]


def test_the_chunk_changes_no_bit(tmp_path):
    config, shas = digits_config(tmp_path), set()
    for chunk in ("1", "3", "5", "10"):
        directory = tmp_path / f"chunk{chunk}"
        options = ("--workers", "10", "--gradients", "vmap", "--chunk", chunk, "strategy.name=local", "training.batch_size=40")
        assert simulate(config, directory, *options) == 0
        shas.add((summary_of(directory)["weights_sha256"], (directory / "workers.jsonl").read_text()))
    assert len(shas) == 1


def test_a_partitioned_workers_course_does_not_depend_on_the_others(tmp_path):
    """Worker 0 of `local` is alone in the world: only its data and its seed count."""
    config = load_config(digits_config(tmp_path), ["partition.name=iid"]).config
    corpus = config.data.build(0)
    order = make_order(config.partition, corpus.train, 10, 0)
    together = order.batch(7, 40, torch.arange(10))
    assert all(torch.equal(order.batch(7, 40, torch.tensor([worker]))[0], together[worker]) for worker in range(10))


def test_the_run_folder_is_like_any_other(tmp_path, capsys):
    config, directory = digits_config(tmp_path), tmp_path / "run"
    overrides = ("--workers", "8", "strategy.name=local", "partition.name=shards", "checkpoint.every=5")
    assert simulate(config, directory, *overrides) == 0
    printed = capsys.readouterr().out
    assert "8 simulated workers" in printed
    assert "partition shards" in printed
    assert "memory    " in printed
    assert "a simulation writes no checkpoints" in printed
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "model.safetensors", "loss.png", "logs/console.log"):
        assert (directory / name).exists(), name
    assert load_config(directory / "config.yaml").config.partition.name == "shards"
    records = list(read_metrics(directory / "metrics.jsonl"))
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    distances = [record["consensus_distance"] for record in records]
    assert distances[0] > 0
    assert all(before < after for before, after in pairwise(distances)), "workers of `local` drift apart"
    assert records[-1]["loss_min"] <= records[-1]["loss"] <= records[-1]["loss_max"]
    lines = [json.loads(line) for line in (directory / "workers.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert len(lines[0]["training_losses"]) == len(lines[0]["validation_losses"]) == 8
    summary = summary_of(directory)
    assert summary["mode"] == "simulated"
    assert summary["mean_model_loss"] != summary["validation_loss"]


def test_ddp_workers_stay_together(tmp_path):
    assert simulate(digits_config(tmp_path), tmp_path / "run", "--workers", "8") == 0
    assert summary_of(tmp_path / "run")["consensus_distance"] == 0.0
    assert summary_of(tmp_path / "run")["mean_model_loss"] == pytest.approx(
        summary_of(tmp_path / "run")["validation_loss"], rel=1e-5
    )


MISTAKES = [
    (("--workers", "3"), "must be a multiple of 3"),
    (("--workers", "2", "training.stop_after=5"), "a simulation writes none"),
    (("--workers", "2", "training.initial_weights=nowhere"), "training.initial_weights=nowhere: there is no nowhere"),
    (("--workers", "2", "launch.device=cuda"), "runs on the CPU"),
    (("--workers", "2", "model.name=plm"), "model.name=plm reads tokens"),
    (("--workers", "2", "objective.name=next_token"), "objective.name=classification"),
    (("--workers", "2", "model.dropout=0.1", "--gradients", "vmap"), "--gradients vmap cannot be used"),
    (("--workers", "2", "optimizer={name: import, target: torch.optim:LBFGS}"), "LBFGS calls the model several times"),
    (("--workers", "2", "optimizer={name: import, target: torch.optim:SGD, arguments: {nesterov: true}}"), "Nesterov momentum"),
    (("--workers", "200000000", "training.batch_size=200000000", "training.validate_every=0"), "needs"),
    (("--workers", "2", "model={name: import, target: tests.simulation.odd_models:Idle}"), "idle.weight got none: freeze it"),
    (("--workers", "2", "model={name: import, target: tests.simulation.odd_models:NumpyNoise}"), "numpy's generator"),
    (("--workers", "16", "partition.name=dirichlet", "partition.alpha=0.01", "partition.min_samples=50"), "min_samples"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_message_and_leaves_nothing(tmp_path, capsys, arguments, message):
    assert simulate(digits_config(tmp_path), tmp_path / "run", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_that_keeps_what_it_computed_is_simulated(tmp_path):
    options = ("--workers", "2", "model={name: import, target: tests.simulation.odd_models:Remembers}", "strategy.name=local")
    weights = []
    for method in ("vmap", "loop", "forward"):
        assert simulate(digits_config(tmp_path), tmp_path / method, *options, "--gradients", method) == 0
        weights.append(load_file(tmp_path / method / "model.safetensors"))
    for name, vmap, loop, forward in ((name, *(each[name] for each in weights)) for name in weights[0]):
        assert torch.equal(vmap, loop), name
        torch.testing.assert_close(
            forward, loop
        )  # backward's product is another one's transpose, which AMD's CPUs round otherwise


def test_a_diverging_worker_ends_the_run_by_its_number(tmp_path, capsys):
    config = digits_config(tmp_path)
    overrides = ("optimizer.lr=1e30", "strategy.name=local", "training.steps=60", "training.clip_norm=null")
    assert simulate(config, tmp_path / "run", "--workers", "4", *overrides) == 1
    assert re.match(r"disttrain: diverged: worker \d's gradients have not been finite for 20 steps", capsys.readouterr().err)


def test_a_stop_request_ends_the_run_with_what_there_is(tmp_path, monkeypatch, capsys):
    from disttrain.launch.shutdown import StopRequest

    asked = iter([False] * 7 + [True] * 100)
    monkeypatch.setattr(StopRequest, "__bool__", lambda self: next(asked))
    assert simulate(digits_config(tmp_path), tmp_path / "run", "--workers", "2") == 143
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("stopped", 7)
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert "to continue" not in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a simulation, which cannot be continued"):
        RunFolder(tmp_path / "run").claim(resume=True)


def test_stopped_before_the_first_step_it_makes_no_loss_up(tmp_path, monkeypatch):
    from disttrain.launch.shutdown import StopRequest

    monkeypatch.setattr(StopRequest, "__bool__", lambda self: True)
    assert simulate(digits_config(tmp_path), tmp_path / "run", "--workers", "2") == 143
    assert (summary_of(tmp_path / "run")["steps"], summary_of(tmp_path / "run")["final_loss"]) == (0, None)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_batch_that_no_memory_holds_is_refused_before_it_is_loaded(tmp_path, capsys):
    arguments = ("--workers", "2", "training.batch_size=1000000000000")
    assert simulate(digits_config(tmp_path), tmp_path / "run", *arguments) == 2
    assert "this machine has" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
