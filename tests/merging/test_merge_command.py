"""``disttrain merge``: saved models become their mean, with a report of what that is worth."""

import json
import re

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from disttrain.cli import main
from disttrain.config import dump, load_config
from disttrain.training.buffers import RECALIBRATION_BATCHES
from tests.merging.local_run import CONFIG, train_apart

WORKERS = 4


def command(*arguments):
    """Run it in this process; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    return ended.value.code


def merge(*arguments):
    return command("merge", *arguments)


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def report(folder):
    return json.loads((folder / "merge.json").read_text())


def mean(states, name):
    return torch.stack([state[name] for state in states]).double().mean(0).float()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four workers without communication, each with digits of few classes, and their models."""
    directory = tmp_path_factory.mktemp("runs") / "apart"
    return directory, train_apart(directory, WORKERS)


@pytest.fixture(scope="module")
def normed(tmp_path_factory):
    """The same with BatchNorm."""
    directory = tmp_path_factory.mktemp("runs") / "normed"
    return directory, train_apart(directory, WORKERS, "model.norm=batch", "strategy.buffers=recalibrate", "training.steps=10")


@pytest.fixture
def alone(tmp_path):
    """Makes a run of one worker."""

    def make(name, *overrides):
        train_apart(tmp_path / name, 1, "training.steps=5", *overrides)
        return tmp_path / name

    return make


def test_the_workers_of_one_run_become_their_mean(run, tmp_path, capsys):
    directory, states = run
    assert merge(directory, "--output", tmp_path / "out") == 0
    merged, facts, printed = weights(tmp_path / "out"), report(tmp_path / "out"), capsys.readouterr().out
    assert merged.keys() == states[0].keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, mean(states, name), rtol=0, atol=1e-7)
    assert f"the live models of the 4 workers of {directory}, at step 20" in printed
    assert re.search(r"^worker 3 +\d\.\d{4} +0\.\d{4} *$", printed, re.MULTILINE)
    assert "merging lowers the loss" in printed
    assert "warning" not in printed
    assert [each["model"] for each in facts["models"]] == [f"worker {rank}" for rank in range(WORKERS)]
    assert facts["local_mean"]["loss"] == pytest.approx(sum(each["loss"] for each in facts["models"]) / WORKERS)
    assert facts["merged"]["accuracy"] > facts["local_mean"]["accuracy"] + 0.1


def test_what_is_measured_is_the_validation_loss(run, tmp_path):
    directory, states = run
    assert merge(directory, "--output", tmp_path / "out") == 0
    config = load_config(directory / "config.yaml").config
    corpus = config.data.build(0)
    inputs, labels = corpus.validation.batch(torch.arange(config.training.validation_batches * config.training.batch_size))
    module, facts = config.model.build(corpus.task), report(tmp_path / "out")
    for state, measured in [*zip(states, facts["models"], strict=True), (weights(tmp_path / "out"), facts["merged"])]:
        module.load_state_dict(state)
        logits = module(inputs).detach()
        assert measured["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
        assert measured["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()), rel=1e-5)


def test_the_consensus_distance_is_that_of_the_whole_models(run, tmp_path):
    directory, states = run
    assert merge(directory, "--output", tmp_path / "out") == 0
    x = torch.stack([torch.cat([tensor.flatten() for tensor in state.values()]) for state in states]).double()
    distance = float((x - x.mean(0)).square().sum(1).mean())
    assert report(tmp_path / "out")["consensus_distance"] == pytest.approx(distance, rel=1e-9)
    relative = distance**0.5 / float(x.mean(0).norm())
    assert report(tmp_path / "out")["relative_consensus_distance"] == pytest.approx(relative, rel=1e-6)


def test_what_was_merged_can_be_loaded_and_merged_again(run, tmp_path):
    directory, _ = run
    assert merge(directory, "--output", tmp_path / "one") == merge(directory, "--output", tmp_path / "other") == 0
    assert merge(tmp_path / "one", "--output", tmp_path / "again", tmp_path / "other") == 0
    once, again = weights(tmp_path / "one"), weights(tmp_path / "again")
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert report(tmp_path / "again")["consensus_distance"] == 0.0
    config = load_config(tmp_path / "again" / "config.yaml").config
    config.model.build(config.data.build(0).task).load_state_dict(again)


def test_without_output_a_new_folder_lies_in_the_runs_own(run):
    directory, _ = run
    assert merge(directory) == merge(directory) == 0
    assert (directory / "merged" / "merge.json").exists()
    assert (directory / "merged-2" / "model.safetensors").exists()


def test_results_of_simulated_runs_are_merged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(CONFIG)
    for number in (1, 2):
        options = (f"run.directory=run{number}", "training.steps=5", f"optimizer.lr=0.{number}")
        assert command("simulate", "digits.yaml", "--workers", 2, *options) == 0
    assert merge("run1", "run2") == 0
    printed = capsys.readouterr().out
    assert "the results (model.safetensors) of 2 runs" in printed
    assert "warning" not in printed
    both, merged = [weights(tmp_path / "run1"), weights(tmp_path / "run2")], weights(tmp_path / "runs" / "merged")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, mean(both, name), rtol=0, atol=1e-7)
    assert merge("run1") == 2
    assert "run1 has no checkpoint" in capsys.readouterr().err


def test_running_statistics_follow_the_runs_policy(normed, tmp_path, capsys):
    directory, states = normed
    name = "hidden0.norm.running_mean"
    counter = "hidden0.norm.num_batches_tracked"
    merged = {}
    for policy in ("recalibrate", "average", "local"):
        options = () if policy == "recalibrate" else ("--buffers", policy)  # which is what the config says
        assert merge(directory, "--output", tmp_path / policy, *options) == 0
        merged[policy] = weights(tmp_path / policy)
        assert report(tmp_path / policy)["buffers"] == policy
    assert "running statistics of 1 layer" in capsys.readouterr().out
    assert torch.equal(merged["local"][name], states[0][name])
    torch.testing.assert_close(merged["average"][name], mean(states, name))
    assert merged["local"][counter] == merged["average"][counter] == states[0][counter]
    assert merged["recalibrate"][counter] == RECALIBRATION_BATCHES
    weight = "hidden0.linear.weight"
    assert torch.equal(merged["recalibrate"][weight], merged["local"][weight]), "recalibration moves no parameter"
    assert report(tmp_path / "recalibrate")["merged"]["loss"] < report(tmp_path / "local")["merged"]["loss"]


def test_a_damaged_checkpoint_is_passed_over_and_told_of(tmp_path, capsys):
    directory = tmp_path / "run"
    train_apart(directory, 2, "training.steps=3")
    train_apart(directory, 2, "training.steps=5")
    (directory / "checkpoints" / "step_00000005" / "rank00001.safetensors").write_bytes(b"nothing")
    assert merge(directory) == 0
    printed = capsys.readouterr().out
    assert "rank00001.safetensors is damaged" in printed
    assert "at step 3" in printed
    assert merge(directory, "--step", "3") == 0
    assert merge(directory, "--step", "5") == 2
    assert "rank00001.safetensors is damaged" in capsys.readouterr().err
    assert merge(directory, "--step", "4") == 2
    assert "there are: 3, 5" in capsys.readouterr().err


def test_different_initial_weights_are_warned_of(alone, tmp_path, capsys):
    runs = alone("first"), alone("second", "training.seed=1")
    assert merge(*runs, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "began from different weights (training.seed is 0 in" in printed
    assert "apart is noise" in report(tmp_path / "out")["warnings"][0]


def test_another_seed_of_the_same_weights_is_no_reason_to_warn(alone, tmp_path, capsys):
    same = ("model={name: import, target: tests.merging.zeros:Zeros}",)
    assert merge(alone("first", *same), alone("second", *same, "training.seed=1"), "--output", tmp_path / "out") == 0
    assert "warning" not in capsys.readouterr().out


def test_other_settings_of_the_same_model_are_warned_of(alone, tmp_path, capsys):
    assert merge(alone("first"), alone("second", "model.activation=tanh"), "--output", tmp_path / "out") == 0
    assert "model.activation is relu in" in capsys.readouterr().out


def test_models_of_other_shapes_are_refused_by_the_first_difference(alone, capsys):
    assert merge(alone("first"), alone("second", "model.hidden=[8]")) == 2
    assert "head.weight is float32 [10, 16] in" in capsys.readouterr().err


def test_models_of_other_names_are_refused(alone, capsys):
    assert merge(alone("first"), alone("second", "model.hidden=[16,16]")) == 2
    assert re.search(r"hidden1\.linear\.bias is in \S+second, but not in \S+first", capsys.readouterr().err)


def test_models_of_other_dtypes_are_refused(alone, capsys):
    first, second = alone("first"), alone("second")
    halves = {name: tensor.half() for name, tensor in weights(second).items()}
    safetensors.torch.save_file(halves, second / "model.safetensors")
    assert merge(first, second) == 2
    assert "head.bias is float32 [10] in" in capsys.readouterr().err


def test_a_scripts_own_model_is_refused_by_name(alone, capsys):
    first, second = alone("first"), alone("second")
    for each in (first, second):
        safetensors.torch.save_file({"my.weight": torch.ones(2)}, each / "model.safetensors")
    assert merge(first, second) == 2
    assert "is not the model that its config.yaml describes" in capsys.readouterr().err


def test_workers_that_hold_one_model_have_nothing_to_merge(tmp_path, capsys):
    train_apart(tmp_path / "run", 2, "training.steps=1", "strategy.name=ddp")
    assert merge(tmp_path / "run") == 2
    assert "under strategy.name=ddp all workers of" in capsys.readouterr().err


def test_one_worker_has_nothing_to_merge(alone, capsys):
    assert merge(alone("run")) == 2
    assert "had one worker" in capsys.readouterr().err


MISTAKES = [
    (("{run}", "{run}"), "is given twice"),
    (("{run}", "{run}/checkpoints", "--step", "3"), "--step chooses a checkpoint of one run"),
    (("{run}/checkpoints",), "is not a run's folder"),
    (("{run}", "--output", "{run}"), "holds something already"),
    (("{run}", "--buffers", "average"), "no running statistics"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_message(run, capsys, arguments, message):
    before = sorted(run[0].iterdir())
    assert merge(*(each.format(run=run[0]) for each in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(run[0].iterdir()) == before


OTHER_RUNS = [
    ("strategy={name: diloco, inner: fsdp, group_size: 2, period: 4}", "strategy.inner=fsdp"),
    ("launch.emulated_step_time=5ms", "its compute was emulated"),
]


@pytest.mark.parametrize(("override", "message"), OTHER_RUNS)
def test_runs_that_saved_no_trained_model_are_refused(tmp_path, capsys, override, message):
    train_apart(tmp_path / "run", 2, "training.steps=4")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(dump(load_config(path, [override]).config))
    assert merge(tmp_path / "run") == 2
    assert message in capsys.readouterr().err
