"""A run that was interrupted and went on is the run that was not, bit by bit."""

import json
import shutil
import time

import pytest
import torch

from disttrain.component import UserError
from disttrain.recording.metrics import read_metrics
from tests.training.small_run import NORMED, norm_statistics, train, write_config

OPTIMIZERS = {
    "sgd": ("optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9"),
    "adamw": ("optimizer.name=adamw", "optimizer.lr=3e-3"),
    "muon": ("optimizer.name=muon", "optimizer.lr=8e-3"),
    "soap": ("optimizer.name=soap",),
    "cosmos": ("optimizer.name=cosmos", "optimizer.lr=2e-2", "optimizer.rank=8"),
    "cosmos, dealt out": ("optimizer.name=cosmos", "optimizer.lr=2e-2", "optimizer.rank=8", "optimizer.sharding=bfloat16"),
    "adagrad": ("optimizer.name=import", "optimizer.target=torch.optim:Adagrad", "optimizer.lr=1e-2"),
}


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [(optimizer, "fp32") for optimizer in OPTIMIZERS]
    + [pytest.param(optimizer, "bf16", marks=[] if optimizer == "adamw" else [pytest.mark.slow]) for optimizer in OPTIMIZERS],
)
def test_ten_and_ten_steps_are_twenty(launched, tmp_path, optimizer, precision):
    config = write_config(tmp_path)
    options = (*OPTIMIZERS[optimizer], f"training.precision={precision}")
    straight = launched(2, train, config, tmp_path / "straight", *options)
    launched(2, train, config, tmp_path / "halves", *options, "training.stop_after=10")
    halves = launched(2, train, config, tmp_path / "halves", *options, "training.resume=auto")
    assert [own for own, _ in halves] == [own for own, _ in straight]
    assert halves[0][1]["weights_sha256"] == straight[0][1]["weights_sha256"] == straight[0][0]
    losses = [[record["loss"] for record in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("straight", "halves")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_workers_that_never_talk_resume_each_their_own(launched, tmp_path):
    config, options = write_config(tmp_path), ("strategy.name=local", *OPTIMIZERS["adamw"])
    straight = launched(2, train, config, tmp_path / "straight", *options)
    launched(2, train, config, tmp_path / "halves", *options, "training.stop_after=10")
    halves = launched(2, train, config, tmp_path / "halves", *options, "training.resume=auto")
    assert [own for own, _ in halves] == [own for own, _ in straight]
    assert straight[0][0] != straight[1][0]


ROUNDS = {
    "co2": ("strategy.name=co2", "strategy.period=4", "strategy.compressor.name=int8", *OPTIMIZERS["muon"]),
    "predicted mean": ("strategy.name=predicted_mean", "strategy.period=4", "strategy.warmup_rounds=1", *OPTIMIZERS["adamw"]),
    "streaming": (
        *("strategy.name=streaming_diloco", "strategy.period=4", "strategy.fragments=2", "strategy.delay=3"),
        *(*OPTIMIZERS["cosmos"], "training.precision=bf16", "training.gradient_accumulation=2"),
    ),
    "gossip": ("strategy.name=dpsgd", "strategy.period=5", *OPTIMIZERS["adamw"]),  # with an exchange under way
}


@pytest.mark.parametrize("method", ROUNDS)
def test_a_round_that_is_broken_off_goes_on(launched, tmp_path, method):
    config, options = write_config(tmp_path), ROUNDS[method]
    straight = launched(2, train, config, tmp_path / "straight", *options)
    launched(2, train, config, tmp_path / "halves", *options, "training.stop_after=10")
    halves = launched(2, train, config, tmp_path / "halves", *options, "training.resume=auto")
    assert [own for own, _ in halves] == [own for own, _ in straight]
    assert straight[0][0] == straight[1][0], "all export the anchor, or what was merged at the end"
    assert halves[0][1]["validation_loss"] == straight[0][1]["validation_loss"]
    assert halves[0][1]["wire_bytes"] < 0.5 * halves[0][1]["ddp_wire_bytes"]


def test_dropout_and_a_middle_of_an_epoch_resume(launched, tmp_path):
    config = write_config(tmp_path)
    model = ("model.name=gpt", "model.width=32", "model.layers=2", "model.heads=2", "model.dropout=0.2")
    options = (*model, "data.max_bytes=20kB", "training.batch_size=64", "training.steps=12")
    straight = launched(1, train, config, tmp_path / "straight", *options)
    launched(1, train, config, tmp_path / "halves", *options, "training.stop_after=7")
    halves = launched(1, train, config, tmp_path / "halves", *options, "training.resume=auto")
    assert halves[0][0] == straight[0][0]


def test_dealt_out_state_continues_with_another_number_of_workers(launched, tmp_path):
    config, options = write_config(tmp_path), (*OPTIMIZERS["cosmos"], "optimizer.sharding=float32")
    straight = launched(2, train, config, tmp_path / "straight", *options)
    launched(2, train, config, tmp_path / "run", *options, "training.stop_after=10")
    continued = launched(4, train, config, tmp_path / "run", *options, "training.resume=auto")
    assert len({own for own, _ in continued}) == 1
    assert continued[0][1]["validation_loss"] == pytest.approx(straight[0][1]["validation_loss"], rel=1e-3)


def test_another_rank_is_refused_with_both(launched, tmp_path):
    config, options = write_config(tmp_path), OPTIMIZERS["cosmos"]
    launched(1, train, config, tmp_path / "run", *options, "training.stop_after=5")
    changed = (*options[:-1], "optimizer.rank=4", "training.resume=auto")
    assert "optimizer.rank: 8 there, 4 here" in launched(1, users_mistake, config, tmp_path / "run", *changed)[0]


def test_what_workers_do_not_do_alike_is_not_dealt_out(launched, tmp_path):
    options = (*OPTIMIZERS["cosmos"], "optimizer.sharding=float32", "strategy.name=local")
    assert "set optimizer.sharding=null" in launched(2, users_mistake, write_config(tmp_path), tmp_path / "run", *options)[0]


def users_mistake(*arguments):
    with pytest.raises(UserError) as mistake:
        train(*arguments)
    return str(mistake.value)


def test_another_number_of_workers_continues_a_replicated_run(launched, tmp_path):
    config = write_config(tmp_path)
    launched(2, train, config, tmp_path / "run", "training.stop_after=10")
    _, summary = launched(1, train, config, tmp_path / "run", "training.resume=auto")[0]
    launched(2, train, config, tmp_path / "straight")
    assert summary["steps"] == 20
    assert summary["workers"] == 1
    reference = json.loads((tmp_path / "straight" / "summary.json").read_text())
    assert summary["validation_loss"] == pytest.approx(reference["validation_loss"], rel=1e-5)


def test_another_number_of_workers_is_refused_where_each_has_its_own_model(launched, tmp_path):
    config = write_config(tmp_path)
    launched(2, train, config, tmp_path / "run", "strategy.name=local", "training.stop_after=10")
    message = launched(1, refusal, config, tmp_path / "run", "strategy.name=local", "training.resume=auto")[0]
    assert "is of 2 workers, this run has 1" in message


def refusal(config, directory, *overrides):
    try:
        train(config, directory, *overrides)
    except UserError as error:
        return str(error)
    return "not refused"


def damaged_run(launched, tmp_path, steps):
    """A finished run whose checkpoints of ``steps`` are damaged in one byte."""
    config = write_config(tmp_path)
    launched(2, train, config, tmp_path / "run", "training.stop_after=15")
    for step in steps:
        path = tmp_path / "run" / "checkpoints" / f"step_{step:08d}" / "shared.safetensors"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    return config, tmp_path / "run"


def resumed_with_output(config, directory, *overrides):
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as output:
        own, _ = train(config, directory, *overrides, "training.resume=auto")
    return own, output.getvalue()


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(launched, tmp_path):
    config, folder = damaged_run(launched, tmp_path, [15])
    straight = launched(2, train, config, tmp_path / "straight")
    (own, output), _ = launched(2, resumed_with_output, config, folder)
    assert own == straight[0][0]
    assert "step_00000015/shared.safetensors is damaged" in output
    assert "continuing from step 10" in output


def test_with_no_whole_checkpoint_nothing_is_overwritten(launched, tmp_path):
    config, folder = damaged_run(launched, tmp_path, [5, 10, 15])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != "logs"}
    messages = launched(2, refusal, config, folder, "training.resume=auto")
    assert all("is whole; nothing was changed" in message for message in messages)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != "logs"} == before


def test_a_folder_that_holds_a_run_is_not_overwritten(launched, tmp_path):
    config = write_config(tmp_path)
    launched(1, train, config, tmp_path / "run", "training.steps=2")
    assert "holds a run already" in launched(2, refusal, config, tmp_path / "run")[1]


def test_a_checkpoint_of_another_model_is_refused(launched, tmp_path):
    config = write_config(tmp_path)
    launched(1, train, config, tmp_path / "run", "training.stop_after=5")
    assert "model.width: 32 there, 64 here" in launched(
        1, refusal, config, tmp_path / "run", "training.resume=auto", "model.width=64"
    )[0]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimizer.name=adamw", "optimizer.name: sgd there, adamw here"),
        ("strategy.name=local", "strategy.name: ddp there, local here"),
        ("training.seed=1", "training.seed: 0 there, 1 here"),
        ("training.batch_size=16", "training.batch_size: 8 there, 16 here"),
        ("data.sequence_length=16", "data.sequence_length: 32 there, 16 here"),
        ("partition.name=iid", "partition.name: none there, iid here"),
    ],
)
def test_what_would_make_it_another_run_is_refused(launched, tmp_path, change, words):
    config = write_config(tmp_path)
    launched(1, train, config, tmp_path / "run", "training.stop_after=5")
    assert words in launched(1, refusal, config, tmp_path / "run", "training.resume=auto", change)[0]


def test_a_finished_run_can_be_made_longer(launched, tmp_path):
    config = write_config(tmp_path)
    launched(2, train, config, tmp_path / "run")
    longer = launched(2, train, config, tmp_path / "run", "training.resume=auto", "training.steps=30")
    straight = launched(2, train, config, tmp_path / "straight", "training.steps=30")
    assert longer[0][0] == straight[0][0]
    assert [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [5, 10, 15, 20, 25, 30]


def test_a_run_cannot_be_made_shorter_than_it_is(launched, tmp_path):
    config = write_config(tmp_path)
    launched(1, train, config, tmp_path / "run")
    message = launched(1, refusal, config, tmp_path / "run", "training.resume=auto", "training.steps=10")[0]
    assert "step 20, beyond training.steps=10" in message


def test_batch_statistics_resume(launched, tmp_path):
    (tmp_path / "normed.py").write_text(NORMED)
    config, options = write_config(tmp_path), ("model.name=import", "model.target=normed:Normed")
    straight = launched(2, norm_statistics, config, tmp_path / "straight", *options)
    launched(2, norm_statistics, config, tmp_path / "halves", *options, "training.stop_after=7")
    halves = launched(2, norm_statistics, config, tmp_path / "halves", *options, "training.resume=auto")
    assert all(torch.equal(a, b) for a, b in zip(straight, halves, strict=True))
    assert not torch.equal(straight[0], straight[1])


def slow_worker(config, directory, slow, stop_at_step, *overrides):
    """A run without communication in which worker 1 is slower; worker `stop_at_step[0]` is told to stop at its step."""

    def prepare(session):
        record = session.record

        def slowed(loss, tokens=0, **metrics):
            time.sleep(slow * session.world.rank)
            if (session.world.rank, session.step) == stop_at_step:
                session.stopping._request.signal = "SIGTERM"
            record(loss, tokens, **metrics)

        session.record = slowed

    kept = []
    own, _ = train(config, directory, "strategy.name=local", *overrides, before_fit=lambda s: (prepare(s), kept.append(s)))
    return own, kept[0].step, kept[0].stopping.interrupted


def test_uneven_workers_that_never_talk_end_together(launched, tmp_path):
    config = write_config(tmp_path)
    results = launched(2, slow_worker, config, tmp_path / "run", 0.1, None, "launch.timeout=0.5s")
    assert [step for _, step, _ in results] == [20, 20]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("stop_at_step", [(0, 7), *(pytest.param(each, marks=pytest.mark.slow) for each in ((1, 3), (1, 12)))])
def test_uneven_workers_that_never_talk_stop_and_continue_each_their_own(launched, tmp_path, stop_at_step):
    config = write_config(tmp_path)
    stopped = launched(2, slow_worker, config, tmp_path / "run", 0.15, stop_at_step, "checkpoint.every=4")
    assert all(interrupted for _, _, interrupted in stopped)
    continued = launched(2, train, config, tmp_path / "run", "strategy.name=local", "training.resume=auto", "checkpoint.every=4")
    straight = launched(2, train, config, tmp_path / "straight", "strategy.name=local")
    assert [own for own, _ in continued] == [own for own, _ in straight]


def test_resuming_a_finished_run_changes_nothing(launched, tmp_path):
    config = write_config(tmp_path)
    first = launched(2, train, config, tmp_path / "run")[0][1]
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = launched(2, train, config, tmp_path / "run", "training.resume=auto")[0][1]
    assert again["weights_sha256"] == first["weights_sha256"]
    assert again["final_loss"] == first["final_loss"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics


def test_a_run_without_checkpoints_yet_starts_from_the_beginning(launched, tmp_path):
    config = write_config(tmp_path)
    straight = launched(1, train, config, tmp_path / "straight")
    launched(1, train, config, tmp_path / "run", "training.stop_after=5")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    again = launched(1, train, config, tmp_path / "run", "training.resume=auto")
    assert again[0][0] == straight[0][0]


COMPRESSED = {
    "ef14": ("strategy.compressor.ratio=0.05",),
    "econtrol in two phases": (
        "strategy.compressor.ratio=0.05",
        "strategy.feedback.name=econtrol",
        "strategy.reducer=two_phase",
        "strategy.warmup_steps=3",
    ),
    "ef21_sgdm of signs": ("strategy.feedback.name=ef21_sgdm", "strategy.compressor.name=sign"),
    "drawn": ("strategy.feedback.name=none", "strategy.compressor.name=qsgd", "strategy.reducer=two_phase"),
}


@pytest.mark.parametrize("settings", COMPRESSED)
def test_compressed_gradients_resume_bitwise(launched, tmp_path, settings):
    config = write_config(tmp_path)
    options = ("strategy.name=compressed", *COMPRESSED[settings], *OPTIMIZERS["adamw"])
    straight = launched(2, train, config, tmp_path / "straight", *options)
    launched(2, train, config, tmp_path / "halves", *options, "training.stop_after=10")
    halves = launched(2, train, config, tmp_path / "halves", *options, "training.resume=auto")
    assert [own for own, _ in halves] == [own for own, _ in straight]


@pytest.mark.parametrize("workers_then", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("settings", ["ef14", "econtrol in two phases"])
def test_compressed_gradients_go_on_with_another_number_of_workers(launched, tmp_path, settings, workers_then):
    config, options = write_config(tmp_path), ("strategy.name=compressed", *COMPRESSED[settings])
    straight = launched(2, train, config, tmp_path / "straight", *options)
    launched(2, train, config, tmp_path / "run", *options, "training.stop_after=10")
    continued = launched(workers_then, train, config, tmp_path / "run", *options, "training.resume=auto")
    assert len({own for own, _ in continued}) == 1
    assert continued[0][1]["validation_loss"] == pytest.approx(straight[0][1]["validation_loss"], rel=0.06)


def test_another_reducer_takes_over_what_is_owed(launched, tmp_path):
    config, options = write_config(tmp_path), ("strategy.name=compressed", "strategy.compressor.ratio=0.05")
    straight = launched(2, train, config, tmp_path / "straight", *options, "strategy.reducer=two_phase")
    launched(2, train, config, tmp_path / "run", *options, "strategy.reducer=two_phase", "training.stop_after=10")
    changed = (*options, "strategy.reducer=gather", "training.resume=auto")
    continued = launched(2, train, config, tmp_path / "run", *changed)
    assert continued[0][0] == continued[1][0]
    assert continued[0][1]["validation_loss"] == pytest.approx(straight[0][1]["validation_loss"], rel=0.06)


def test_another_feedback_is_refused(launched, tmp_path):
    config, options = write_config(tmp_path), ("strategy.name=compressed",)
    launched(1, train, config, tmp_path / "run", *options, "training.stop_after=5")
    changed = (*options, "strategy.feedback.name=ef21", "training.resume=auto")
    (message,) = launched(1, users_mistake, config, tmp_path / "run", *changed)
    assert "strategy.feedback.name: ef14 there, ef21 here" in message
