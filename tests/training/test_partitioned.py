"""Training on divided data: each worker sees its own samples only, and a resumed run goes on where it stopped."""

import json

import pytest

from disttrain.component import UserError
from disttrain.data import DigitsConfig
from disttrain.data.partitions import ShardsConfig
from disttrain.recording.metrics import read_metrics
from tests.training.small_run import train, write_config

DIGITS = """
model: {name: mlp}
data: {name: digits}
objective: {name: classification}
partition: {name: shards}
optimizer: {name: sgd}
training: {steps: 60, batch_size: 32, validate_every: 0}
recording: {log_every: 10}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "divided.yaml"
    path.write_text(DIGITS)
    return path


def visited(config, directory, *overrides):
    """The samples that this worker trained on, and a step's worth of them in order."""
    seen = []

    def watch(session):
        from disttrain.training import loop

        corpus_of = loop._load

        def load(of):
            corpus = corpus_of(of)
            batch = corpus.train.batch
            object.__setattr__(corpus.train, "batch", lambda indices: (seen.append(indices.tolist()), batch(indices))[1])
            return corpus

        loop._load = load

    train(config, directory, *overrides, before_fit=watch)
    return seen


def test_each_worker_trains_on_its_own_samples_once_per_epoch(launched, config, tmp_path):
    parts = ShardsConfig().divide(DigitsConfig().build(0).train, 2, seed=0)
    batches = launched(2, visited, config, tmp_path / "run", "training.steps=100")
    for part, seen in zip(parts, batches, strict=True):
        line = [sample for batch in seen for sample in batch]
        assert {len(batch) for batch in seen} == {16}
        assert sorted(line[: len(part)]) == part.tolist()
        assert set(line) == set(part.tolist())


def test_what_was_divided_is_said_once(launched, config, tmp_path):
    launched(2, train, config, tmp_path / "run", "training.steps=5")
    lines = (tmp_path / "run" / "logs" / "console.log").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("partition")]
    assert line.startswith("partition shards: 1,420 samples among 2 workers, each owns 710, of ")
    assert line.endswith(" of the 10 classes")


@pytest.mark.parametrize("strategy", ["ddp", "local"])
def test_stopped_and_resumed_is_uninterrupted_bit_by_bit(launched, config, tmp_path, strategy):
    options = (f"strategy.name={strategy}",)
    straight = launched(2, train, config, tmp_path / "straight", *options)
    launched(2, train, config, tmp_path / "halves", *options, "training.stop_after=31")
    halves = launched(2, train, config, tmp_path / "halves", *options, "training.resume=auto")
    assert [own for own, _ in halves] == [own for own, _ in straight]


def test_one_worker_that_owns_everything_sees_what_one_without_a_partition_does(launched, config, tmp_path):
    owning = launched(1, train, config, tmp_path / "owning", "partition.name=iid")
    sharing = launched(1, train, config, tmp_path / "sharing", "partition.name=none")
    assert owning[0][0] == sharing[0][0]


def refusal(config, directory, *overrides):
    with pytest.raises(UserError) as error:
        train(config, directory, *overrides)
    return str(error.value)


def test_another_number_of_workers_cannot_go_on_with_divided_data(launched, config, tmp_path):
    launched(2, train, config, tmp_path / "run", "training.stop_after=5")
    message = launched(1, refusal, config, tmp_path / "run", "training.resume=auto")[0]
    assert "partition.name=shards each worker has samples of its own, so their number must stay" in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("partition.name=dirichlet", "partition.min_samples=700"), "use partition.on_small=repair"),
        (("partition.name=quantity_skew", "partition.beta=1e-3", "partition.on_small=allow"), "without a sample to train on"),
        (("partition.name=source",), "does not tell where samples come from: use data.name=prepared or python_source or text"),
    ],
)
def test_what_cannot_be_divided_is_refused(launched, config, tmp_path, overrides, words):
    assert words in launched(2, refusal, config, tmp_path / "run", *overrides)[0]


def test_text_is_divided_by_its_sources(launched, tmp_path):
    launched(2, train, write_config(tmp_path), tmp_path / "run", "partition.name=source", "training.steps=10")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tokens"] == 10 * 8 * 32
    assert list(read_metrics(tmp_path / "run" / "metrics.jsonl"))[-1]["validation_loss"] < 6
    assert "sources" in (tmp_path / "run" / "logs" / "console.log").read_text()
