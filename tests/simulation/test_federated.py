"""``disttrain federated``: a run from a config, its records, what it refuses, and going on with it."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy, dropout

from disttrain.cli import main
from disttrain.config import ConfigError, load_config
from disttrain.objectives import ClassificationConfig
from disttrain.recording.metrics import read_metrics
from disttrain.simulation.federated.sample_losses import SampleLosses
from disttrain.simulation.replicas import Replicas
from tests.simulation.odd_models import Branches

CONFIG = """
model: {name: mlp, hidden: [16]}
data: {name: digits}
partition: {name: shards}
objective: {name: classification}
federated: {clients: 20, cohort: 6, rounds: 12, local_steps: 3, batch_size: 4, block_size: 4}
recording: {log_every: 4}
"""
D = 64 * 16 + 16 + 16 * 10 + 10


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr("disttrain.recording.recorder.draw_pictures", lambda *_: None)
    monkeypatch.setattr("disttrain.simulation.federated.run.plot_partition", lambda *_: None)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


def federate(config, directory, *overrides):
    """Run the command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["federated", str(config), f"run.directory={directory}", "launch.threads=1", *overrides])
    return ended.value.code


def summary_of(directory):
    return json.loads((directory / "summary.json").read_text())


def algorithm(name, *settings):
    return f"federated.algorithm.name={name}", *(f"federated.algorithm.{each}" for each in settings)


ALGORITHMS = {
    "fedavg": (*algorithm("fedavg"), "federated.momentum=0.5"),
    "fedprox": algorithm("fedprox", "mu=0.5"),
    "fedavgm": algorithm("fedavgm"),
    "fedadam": algorithm("fedadam"),
    "fedadagrad": algorithm("fedadagrad"),
    "fedyogi": algorithm("fedyogi"),
    "scaffold": algorithm("scaffold"),
    "scallion": algorithm("scallion", "compressor={name: rand_k, ratio: 0.1, unbiased: true}"),
    "scafcom": algorithm("scafcom", "compressor={name: top_k, ratio: 0.1}"),
    "fedamd": algorithm("fedamd", "probability=0.4"),
    "fedamd_sequential": algorithm("fedamd_sequential"),
    "mifa": algorithm("mifa"),
    "feddyn": algorithm("feddyn"),
    "fedpage": algorithm("fedpage", "probability=0.3"),
    "rerce": (*algorithm("rerce", "rho=0.1"), "federated.noise.up=1e-6"),
    "rerce_continual": (*algorithm("rerce_continual", "rho=0.1"), "federated.noise.down=1e-6"),
    "curriculum": ("federated.ordering.name=curriculum", "federated.participation.name=curriculum"),
    "curriculum as clients see it": (
        *algorithm("scaffold"),
        "federated.lr=0.3",
        "federated.ordering={name: curriculum, score: local}",
    ),
    "anti_curriculum": ("federated.ordering.name=anti_curriculum", "federated.participation.name=anti_curriculum"),
    "random order": (*algorithm("mifa"), "federated.ordering={name: random, pacing: {shape: step, until: 0.5}}"),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_learns_and_resumes_bitwise(config, tmp_path, name):
    faults = (
        "federated.dropout=0.2",
        "federated.latency={seconds: 1s, round_spread: 0.5}",
        "checkpoint.every=5",
        "training.validate_every=2",
    )
    options = (*ALGORITHMS[name], *faults, "federated.engine=batched")
    assert federate(config, tmp_path / "whole", *options) == 0
    assert federate(config, tmp_path / "halves", *options, "training.stop_after=7") == 0
    assert summary_of(tmp_path / "halves")["status"] == "stopped"
    assert federate(config, tmp_path / "halves", *options, "training.resume=auto") == 0
    whole, halves = summary_of(tmp_path / "whole"), summary_of(tmp_path / "halves")
    assert whole["weights_sha256"] == halves["weights_sha256"]
    varying = ("seconds", "peak_memory_bytes", "final_loss")  # the loss is since the last record, of which there is one more
    assert {k: v for k, v in whole.items() if k not in varying} == {k: v for k, v in halves.items() if k not in varying}
    first = next(read_metrics(tmp_path / "whole" / "metrics.jsonl"))
    assert whole["validation_loss"] < first["validation_loss"]


def test_the_run_folder_tells_what_was_done(config, tmp_path):
    assert federate(config, tmp_path / "run", "training.validate_every=6", "checkpoint.every=5") == 0
    records = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert [record["step"] for record in records] == [4, 6, 8, 12]
    assert [record["step"] for record in records if "validation_accuracy" in record] == [6, 12]
    last, summary = records[-1], summary_of(tmp_path / "run")
    assert last["bytes_up"] == last["bytes_down"] == 12 * 6 * D * 4
    assert last["gradient_evaluations"] == 12 * 6 * 3 * 4
    assert (last["clients_used"], last["clients_lost"], last["virtual_seconds"]) == (72, 0, 36.0)
    assert (summary["status"], summary["mode"], summary["steps"], summary["algorithm"]) == ("finished", "federated", 12, "fedavg")
    assert summary["validation_accuracy"] == last["validation_accuracy"]
    assert sum(each.numel() for each in load_file(tmp_path / "run" / "model.safetensors").values()) == D
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step_00000010", "step_00000012"]
    again = load_config(tmp_path / "run" / "config.yaml").config
    assert again.federated == load_config(config).config.federated
    assert "round 12/12" in (tmp_path / "run" / "logs" / "console.log").read_text()


def test_engines_agree(config, tmp_path):
    options = algorithm("scaffold")
    for engine in ("serial", "batched"):
        assert federate(config, tmp_path / engine, *options, f"federated.engine={engine}") == 0
    serial, batched = (load_file(tmp_path / engine / "model.safetensors") for engine in ("serial", "batched"))
    for name, weights in serial.items():
        torch.testing.assert_close(weights, batched[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fedavg", "scafcom", "fedamd"])
def test_a_models_blocks_have_the_same_bits_alone_and_together(config, tmp_path, monkeypatch, name):
    options = (
        *ALGORITHMS[name],
        "federated.engine=batched",
        "federated.block_size=2",
        "federated.cohort=7",
        "federated.rounds=6",
    )
    assert federate(config, tmp_path / "together", *options) == 0
    monkeypatch.setattr("disttrain.simulation.federated.run.MOST_TOGETHER", 0)
    assert federate(config, tmp_path / "alone", *options) == 0
    assert summary_of(tmp_path / "together")["weights_sha256"] == summary_of(tmp_path / "alone")["weights_sha256"]


def test_late_and_lost_clients_are_counted(config, tmp_path):
    options = ("federated.dropout=0.3", "federated.waiting={name: deadline, seconds: 4s}",
               "federated.latency={seconds: 1s, client_spread: 0.5}")  # fmt: skip
    assert federate(config, tmp_path / "run", *options) == 0
    summary = summary_of(tmp_path / "run")
    assert summary["clients_used"] + summary["clients_lost"] == 72
    assert 10 < summary["clients_lost"] < 50
    assert summary["bytes_up"] == summary["clients_used"] * D * 4
    assert summary["bytes_down"] == 72 * D * 4
    assert summary["virtual_seconds"] <= 48


def test_a_trace_tells_who_is_there(config, tmp_path, capsys):
    trace = tmp_path / "trace.csv"
    trace.write_text("client,from,until\n" + "".join(f"{client},0,{6 + client}\n" for client in range(4)))
    assert federate(config, tmp_path / "run", f"federated.participation={{name: trace, path: {trace}}}") == 0
    summary = summary_of(tmp_path / "run")
    assert (summary["clients_used"], summary["void_rounds"]) == (6 + 7 + 8 + 9, 3)
    trace.write_text("client,from,until\n20,0,5\n")
    assert federate(config, tmp_path / "other", f"federated.participation={{name: trace, path: {trace}}}") == 2
    assert "names client 20, and there are clients 0 to 19" in capsys.readouterr().err


def test_an_expert_orders_samples(config, tmp_path, capsys):
    assert federate(config, tmp_path / "expert") == 0
    by_expert = f"federated.ordering={{name: curriculum, score: expert, expert: {tmp_path / 'expert'}}}"
    assert federate(config, tmp_path / "run", by_expert, "federated.rounds=40") == 0
    summary = summary_of(tmp_path / "run")
    assert summary["samples_scored"] == 1420, "each client's samples, once"
    assert "and losses of 1,420" in capsys.readouterr().out
    assert federate(config, tmp_path / "run", by_expert.replace("expert}", "run}"), "training.resume=auto") == 2
    assert "federated.ordering.expert: " in capsys.readouterr().err
    assert federate(config, tmp_path / "other", by_expert, "model.hidden=[8]") == 2
    error = capsys.readouterr().err
    assert "federated.ordering.expert=" in error
    assert "they are of another model" in error


def test_losses_of_samples_are_those_of_evaluation_whether_vmap_can_or_not():
    inputs, targets = torch.randn(7, 1, 8, 8), torch.arange(7)
    for module in (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)), Branches()):
        replicas = Replicas(module, 2, alignment=1)
        losses = SampleLosses(replicas, ClassificationConfig().build())
        module.eval()
        expected = torch.stack([cross_entropy(module(inputs[i : i + 1]), targets[i : i + 1]) for i in range(7)])
        torch.testing.assert_close(losses(replicas.x[0], inputs, targets), expected.detach())
        assert losses._at_once != isinstance(module, Branches)


def test_a_model_that_draws_even_in_evaluation_is_scored_alike_each_time():
    class Forgetful(nn.Linear):
        def forward(self, x):
            return dropout(super().forward(x.flatten(1)), 0.5)

    replicas = Replicas(Forgetful(64, 10), 2, alignment=1)
    losses, batch = SampleLosses(replicas, ClassificationConfig().build()), (torch.randn(5, 1, 8, 8), torch.arange(5))
    first, before = losses(replicas.x[0], *batch), torch.get_rng_state()
    assert torch.equal(first, losses(replicas.x[0], *batch))
    assert torch.equal(before, torch.get_rng_state())


def test_what_comes_first_is_said_and_what_noise_does(config, tmp_path, capsys):
    ordered = ("federated.ordering.name=anti_curriculum", "federated.participation.name=curriculum")
    assert federate(config, tmp_path / "ordered", *ordered) == 0
    out = capsys.readouterr().out
    assert "order     samples hard first by global loss, linear from 0.2 of them to all after 0.8 of the rounds" in out
    assert "order     clients easy first by their last loss" in out
    assert federate(config, tmp_path / "noisy", *algorithm("rerce"), "federated.noise.up=1e-6") == 0
    assert "warning: with local steps, noise of the links adds up" in capsys.readouterr().out


def test_a_model_with_dropout_draws_by_round_and_client(config, tmp_path):
    options = ("model.dropout=0.3",)
    assert federate(config, tmp_path / "whole", *options) == 0
    assert federate(config, tmp_path / "halves", *options, "training.stop_after=5") == 0
    assert federate(config, tmp_path / "halves", *options, "training.resume=auto") == 0
    assert summary_of(tmp_path / "whole")["weights_sha256"] == summary_of(tmp_path / "halves")["weights_sha256"]
    assert summary_of(tmp_path / "whole")["engine"] == "serial"


def test_a_signal_stops_and_saves(config, tmp_path, monkeypatch):
    assert federate(config, tmp_path / "whole", "federated.engine=batched") == 0
    asked = iter([False] * 5)
    monkeypatch.setattr("disttrain.launch.shutdown.StopRequest.__bool__", lambda self: next(asked, True))
    assert federate(config, tmp_path / "halves", "federated.engine=batched") == 143
    monkeypatch.undo()
    monkeypatch.setattr("disttrain.recording.recorder.draw_pictures", lambda *_: None)
    assert summary_of(tmp_path / "halves")["steps"] == 5
    assert federate(config, tmp_path / "halves", "federated.engine=batched", "training.resume=auto") == 0
    assert summary_of(tmp_path / "whole")["weights_sha256"] == summary_of(tmp_path / "halves")["weights_sha256"]


def test_a_language_model_on_clients_texts(tmp_path):
    path = tmp_path / "text.yaml"
    path.write_text(
        "model: {name: plm, width: 32, layers: 1, heads: 2}\n"
        "data: {name: python_source, sequence_length: 32, max_bytes: 200kB, validation_ratio: 0.2}\n"
        "partition: {name: source, on_small: repair}\n"
        "federated: {clients: 12, cohort: 4, rounds: 6, local_steps: 3, batch_size: 2, lr: 0.5, algorithm: {name: scaffold}}\n"
        "recording: {log_every: 1}\n"
    )
    assert federate(path, tmp_path / "run") == 0
    losses = [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_the_schedule_is_over_rounds(config, tmp_path):
    assert federate(config, tmp_path / "run", "schedule.name=cosine") == 0
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * rates[0]


def test_empty_clients_are_skipped_only_if_that_is_wanted(config, tmp_path, capsys):
    options = ("partition={name: dirichlet, alpha: 0.05, on_small: allow}", "federated.clients=100")
    assert federate(config, tmp_path / "run", *options) == 2
    message = capsys.readouterr().err
    assert "without a sample: set federated.on_empty=skip" in message
    assert not (tmp_path / "run").exists()
    assert federate(config, tmp_path / "run", *options, "federated.on_empty=skip") == 0


WRONG = {
    "cohort that rounds to zero": (["federated.cohort=0.001"], "rounds to zero"),
    "cohort beyond the clients": (["federated.cohort=21"], "must be at most federated.clients=20"),
    "momentum in SCAFFOLD": ([*algorithm("scaffold"), "federated.momentum=0.9"], "which it is not with momentum=0.9"),
    "weight decay in SCAFCOM": ([*algorithm("scafcom"), "federated.weight_decay=0.1"], "which it is not with weight_decay=0.1"),
    "clipping in FedPAGE": ([*algorithm("fedpage"), "federated.clip_norm=1"], "no longer are with clip_norm=1"),
    "noise upwards in SCAFFOLD": ([*algorithm("scaffold"), "federated.noise.up=0.1"], "noise.up=0.1 would add up"),
    "an order of large batches": ([*algorithm("fedamd"), "federated.ordering.name=curriculum"], "have no order: set ordering"),
    "losses of no model": ([*algorithm("rerce"), "federated.participation.name=curriculum"], "does not send clients the model"),
    "an expert for nothing": (["federated.ordering={name: curriculum, expert: runs/x}"], "ignored with score=global"),
    "no expert": (["federated.ordering={name: curriculum, score: expert}"], "score=expert needs expert"),
    "an expert who is not there": (["federated.ordering={name: curriculum, score: expert, expert: nowhere}"], "no nowhere"),
    "unknown ordering": (["federated.ordering.name=curiculum"], 'did you mean "curriculum"'),
    "a start of nothing": (["federated.ordering={name: random, pacing: {start: 0}}"], "start: must be greater than 0"),
    "a large batch for nobody": (["federated.large_batch=8"], "federated.algorithm.name=fedavg has no large batches"),
    "negative noise": (["federated.noise.up=-1"], "federated.noise.up: must be at least 0"),
    "unknown algorithm": ([*algorithm("fedavgg")], 'unknown algorithm "fedavgg"; did you mean "fedavg'),
    "unknown participation": (["federated.participation.name=unifrom"], 'did you mean "uniform"'),
    "no trace": (["federated.participation={name: trace, path: nowhere.csv}"], "cannot read nowhere.csv: No such file"),
    "unknown waiting": (["federated.waiting.name=deadlines"], 'did you mean "deadline"'),
    "unknown key": (["federated.client=3"], "unknown key"),
    "a biased compressor in SCALLION": ([*algorithm("scallion", "compressor={name: top_k}")], "scallion is for unbiased"),
    "an unbiased one in SCAFCOM": ([*algorithm("scafcom", "compressor={name: qsgd}")], "scafcom is for contractions"),
    "samples counted twice": (["federated.participation.name=weighted"], "count these a second time"),
    "an optimizer": (["optimizer.lr=0.1"], "optimizer: would be ignored in a federated run"),
    "a strategy": (["strategy.name=local"], "strategy: would be ignored"),
    "steps": (["training.steps=10"], "set federated.rounds"),
    "no partition": (["partition.name=none"], "clients must own their samples"),
    "a GPU": (["launch.device=cuda"], "clients are simulated on the CPU"),
    "settings of Ray without it": (["federated.ray.actors=2"], "federated.ray: would be ignored with federated.engine=auto"),
    "more actors than CPUs": (["federated.engine=ray", "federated.ray.actors=5000"], "federated.ray.actors=5000 with launch.thr"),
    "nobody at Ray's address": (["federated.engine=ray", "federated.ray.address=127.0.0.1:1"], "nobody answers there"),
    "no address": (["federated.engine=ray", "federated.ray.address=ray://head"], "must be host:port of the cluster's head"),
    "retries of a wrong kind": (["federated.ray.retries=-1"], "federated.ray.retries"),
    "stopping after the end": (["training.stop_after=13"], "must be at most federated.rounds=12"),
    "BatchNorm": (["model.norm=batch"], "keeps running statistics"),
    "tokens": (["data={name: random_tokens}"], "classif"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_message_and_exit_code_2(config, tmp_path, capsys, case):
    overrides, message = WRONG[case]
    if case != "no partition" and case == "tokens":
        overrides = [*overrides, "partition={name: iid}"]
    assert federate(config, tmp_path / "run", *overrides) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("disttrain: ") == 1
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_config_without_the_section_is_refused(tmp_path, capsys):
    path = tmp_path / "plain.yaml"
    path.write_text("model: {name: mlp}\ndata: {name: digits}\nobjective: {name: classification}\n")
    assert federate(path, tmp_path / "run") == 2
    assert "no section federated" in capsys.readouterr().err


def test_stopping_counts_rounds_and_not_the_steps_of_other_runs(config, tmp_path):
    assert load_config(config, ["federated.rounds=5000", "training.stop_after=2000"]).config.training.stop_after == 2000
    with pytest.raises(ConfigError, match=r"stop_after=2000 must be at most training\.steps=1000"):
        load_config(config, ["federated=null", "training.stop_after=2000"])


def test_other_commands_refuse_the_section(config):
    with pytest.raises(ConfigError, match="is for `disttrain federated`"):
        load_config(config).config.check_world(1)


def test_what_diverges_ends_with_exit_code_1(config, tmp_path, capsys):
    assert federate(config, tmp_path / "run", "federated.lr=1e30", "federated.rounds=40") == 1
    assert "diverged" in capsys.readouterr().err


def test_another_runs_checkpoint_is_refused(config, tmp_path, capsys):
    assert federate(config, tmp_path / "run", "training.stop_after=3") == 0
    capsys.readouterr()
    assert federate(config, tmp_path / "run", "training.resume=auto", *algorithm("scaffold")) == 2
    assert "federated.algorithm.name: fedavg there, scaffold here" in capsys.readouterr().err
    assert federate(config, tmp_path / "run", "training.resume=auto", "federated.ordering.name=curriculum") == 2
    assert "federated.ordering.name: none there, curriculum here" in capsys.readouterr().err
    assert federate(config, tmp_path / "run", "training.resume=auto", "federated.participation.name=curriculum") == 2
    assert "what clients keep is ['loss'] here, and [] there" in capsys.readouterr().err


def test_another_algorithm_on_the_command_line_takes_its_own_defaults(tmp_path):
    path = tmp_path / "scafcom.yaml"
    path.write_text("federated: {algorithm: {name: scafcom, beta: 0.5}}\n")
    loaded = load_config(path, ["federated.algorithm.name=fedamd"])
    assert loaded.config.federated.algorithm.name == "fedamd"
    assert any("replaces scafcom" in notice for notice in loaded.notices)


def test_an_algorithm_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "my_algorithm_of_a_test.py").write_text(
        "from typing import Literal\n"
        "from disttrain.federated import AlgorithmConfig, FedAvg, federated_algorithms\n"
        "@federated_algorithms.register\n"
        "class MineConfig(AlgorithmConfig):\n"
        '    name: Literal["mine"] = "mine"\n'
        "    strength: float = 2.0\n"
        "    def build(self):\n"
        "        return FedAvg(self.strength)\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text("imports: [my_algorithm_of_a_test]\nfederated: {algorithm: {name: mine, strength: 3.0}}\n")
    assert load_config(path).config.federated.algorithm.build().mu == 3.0


def test_without_ray_its_engine_is_refused(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("disttrain.federated.engines.ray_cluster.importlib.util.find_spec", lambda name: None)
    assert federate(config, tmp_path / "run", "federated.engine=ray") == 2
    assert "federated.engine=ray needs Ray, which is not installed: pip install 'disttrain[ray]'" in capsys.readouterr().err


GROWING = """
import torch
from torch import nn
class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.spare = nn.Linear(64, 10), 0, [nn.Parameter(torch.zeros(10))]
    def forward(self, x):
        self.calls += 1
        if self.calls == 40:
            self.more = self.spare[0]
        return self.layer(x.flatten(1))
"""


def growing(tmp_path, monkeypatch):
    """Settings of a model that changes its size after some calls."""
    (tmp_path / "growing_model_of_a_test.py").write_text(GROWING)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "model={name: import, target: growing_model_of_a_test:Growing}"


@pytest.mark.parametrize("engine", ["serial", "batched"])
def test_a_model_that_changes_its_size_is_refused(config, tmp_path, capsys, monkeypatch, engine):
    assert (
        federate(config, tmp_path / "run", growing(tmp_path, monkeypatch), f"federated.engine={engine}", "federated.rounds=40")
        == 2
    )
    assert "the model had 650 parameters at first and now has 660" in capsys.readouterr().err
