"""The loop does what the config says: the global batch, accumulation, clipping, buffers, and no collective of its own."""

import json
from functools import partial

import pytest
import torch
import torch.distributed as dist

from disttrain.recording.metrics import read_metrics
from tests.sockets import bytes_sent
from tests.training.small_run import NORMED, norm_statistics, train, write_config


def losses(folder):
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


def test_two_workers_with_half_the_batch_are_one_with_all_of_it(launched, tmp_path):
    config, options = write_config(tmp_path), ("recording.log_every=1", "optimizer.momentum=0.9", "optimizer.lr=0.05")
    launched(1, train, config, tmp_path / "one", *options)
    launched(2, train, config, tmp_path / "two", *options)
    assert len(losses(tmp_path / "one")) == 20
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_accumulation_changes_nothing_but_memory(launched, tmp_path):
    config = write_config(tmp_path)
    launched(2, train, config, tmp_path / "whole", "recording.log_every=1")
    launched(2, train, config, tmp_path / "parts", "recording.log_every=1", "training.gradient_accumulation=4")
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    whole, parts = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("whole", "parts"))
    assert parts["payload_bytes"] == pytest.approx(whole["payload_bytes"], rel=1e-3)


def counted_train(config, directory, *overrides):
    """Names of all collectives from the first step to the last, and the world's own count of them."""
    calls, counting = [], []
    kinds = (
        "all_",
        "broadcast",
        "reduce",
        "gather",
        "scatter",
        "barrier",
        "send",
        "recv",
        "isend",
        "irecv",
        "batch_",
        "monitored_",
    )

    def spy(name, function):
        def called(*arguments, **options):
            calls.extend([name] if counting else [])
            return function(*arguments, **options)

        return called

    def count(session):
        from disttrain.worlds import torch_world

        for name in dir(dist):
            if name.startswith(kinds) and callable(getattr(dist, name)):
                setattr(dist, name, spy(name, getattr(dist, name)))
        torch_world._all_gather = spy("all_gather", torch_world._all_gather)
        resume, merge = session.resume, session.merge
        session.resume = lambda: (resume(), counting.append(session.world.traffic.collectives))[0]

        def merged(batches):
            counting.append(session.world.traffic.collectives)
            session.counted = list(calls), counting[1] - counting[0]
            return merge(batches)

        session.merge = merged
        kept.append(session)

    kept = []
    train(config, directory, *overrides, before_fit=count)
    return kept[0].counted


def test_local_issues_no_collective_between_start_and_end(launched, tmp_path):
    config = write_config(tmp_path)
    assert launched(2, counted_train, config, tmp_path / "run", "strategy.name=local") == [([], 0)] * 2


def test_ddp_issues_its_gradients_and_a_few_agreements(launched, tmp_path):
    config = write_config(tmp_path)
    for calls, counted in launched(2, counted_train, config, tmp_path / "run", "training.steps=40"):
        assert set(calls) == {"all_reduce"}
        assert len(calls) == counted
        assert 40 <= len(calls) <= 40 + 25  # gradients, logged losses and validations; about one a second more


def test_summary_and_metrics_have_what_scripts_rely_on(launched, tmp_path):
    config = write_config(tmp_path)
    launched(2, partial(train, picture=True), config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {
        "status", "steps", "tokens", "final_loss", "validation_loss", "seconds", "payload_bytes", "wire_bytes", "ddp_wire_bytes",
        "exposed_seconds", "peak_memory_bytes", "weights_sha256",
    } <= summary.keys()  # fmt: skip
    assert summary["status"] == "finished"
    assert summary["tokens"] == 20 * 8 * 32
    records = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert {
        "step", "tokens", "loss", "learning_rate", "seconds", "tokens_per_second", "payload_bytes", "wire_bytes",
        "exposed_seconds", "optimizer_seconds",
    } <= records[0].keys()  # fmt: skip
    assert records[1]["validation_loss"] > records[3]["validation_loss"]
    assert summary["validation_loss"] == records[3]["validation_loss"]
    assert summary["wire_bytes"] == pytest.approx(summary["ddp_wire_bytes"], rel=0.01)
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def train_and_count(config, directory, *overrides):
    """The summary's count, and the kernel's."""
    summary = train(config, directory, *overrides)[1]
    dist.barrier()  # all have sent everything
    sent = bytes_sent()
    dist.barrier()  # a worker that ended would take its peers' connections along
    return summary and summary["wire_bytes"], sent


EXCHANGES = {
    "ddp": ("strategy.name=ddp", "model.width=128"),
    "ddp_cast": ("strategy.name=ddp_cast", "model.width=128"),
    "one per cent, gathered": ("strategy.name=compressed", "strategy.reducer=gather", "model.width=256"),
    "one per cent in two phases": ("strategy.name=compressed", "strategy.reducer=two_phase", "model.width=256"),
    "gossip": ("strategy.name=dpsgd", "model.width=128", "strategy.merge=false"),
    "factors": ("strategy.name=compressed", "strategy.compressor.name=power_sgd", "model.width=256"),
}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_runs_wire_bytes_are_what_the_worker_sent(launched, tmp_path, exchange):
    config = write_config(tmp_path)
    steps = 8 if exchange.startswith("ddp") else 30  # what workers exchange to meet must not weigh
    options = (f"training.steps={steps}", "data.sequence_length=8", *EXCHANGES[exchange])
    counted, sent = launched(2, train_and_count, config, tmp_path / "run", *options)[0]
    assert counted == pytest.approx(sent, rel=0.03)


def test_exported_weights_load_into_a_fresh_model(launched, tmp_path):
    import safetensors.torch

    from disttrain.config import load_config
    from disttrain.parameters import sha256_of
    from disttrain.task import TokenTask

    config = write_config(tmp_path)
    summary = launched(1, train, config, tmp_path / "run")[0][1]
    module = load_config(config).config.model.build(TokenTask(256, 32))
    safetensors.torch.load_model(module, tmp_path / "run" / "model.safetensors")
    assert sha256_of({name: p.detach() for name, p in module.named_parameters()}) == summary["weights_sha256"]


def diverging(config, directory):
    def poison(session):
        prepare = session.prepare

        def prepare_and_poison(module, optimizer=None):
            prepared = prepare(module, optimizer)
            session.strategy.x.fill_(float("nan"))
            return prepared

        session.prepare = prepare_and_poison

    try:
        train(config, directory, "training.steps=100", before_fit=poison)
    except RuntimeError as error:
        return str(error)


def test_a_diverged_run_ends_instead_of_pretending(launched, tmp_path):
    config = write_config(tmp_path)
    assert launched(2, diverging, config, tmp_path / "run") == [
        "diverged: the gradients have not been finite for 20 steps, up to step 20"
    ] * 2  # fmt: skip


@pytest.mark.parametrize("policy", ["local", "average", "recalibrate"])
def test_buffers_follow_their_policy(launched, tmp_path, policy):
    (tmp_path / "normed.py").write_text(NORMED)
    config = write_config(tmp_path)
    options = ("model.name=import", "model.target=normed:Normed", f"strategy.buffers={policy}")
    first, second = launched(2, norm_statistics, config, tmp_path / "run", *options)
    assert torch.equal(first, second) == (policy == "average")
    assert first.abs().sum() > 0


def test_every_config_in_the_repository_is_valid():
    from pathlib import Path

    from disttrain.config import load_config

    paths = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert len(paths) >= 9
    for path in paths:
        load_config(path)
