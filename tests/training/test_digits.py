"""Classification from end to end: the digits' config as it stands, and every way to combine it wrongly."""

from pathlib import Path

import pytest

from disttrain.component import UserError
from disttrain.recording.metrics import read_metrics
from tests.training.small_run import train

CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"


def test_two_workers_learn_the_digits_in_seconds(launched, tmp_path):
    (mine, summary), (theirs, _) = launched(2, train, CONFIG, tmp_path / "run")
    assert mine == theirs
    assert summary["validation_accuracy"] > 0.9
    assert summary["validation_loss"] < 0.3
    assert summary["tokens"] == 300 * 64  # samples
    records = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert [record["step"] for record in records if "validation_accuracy" in record] == [100, 200, 300]
    assert summary["validation_accuracy"] == records[-1]["validation_accuracy"]
    console = (tmp_path / "run" / "logs" / "console.log").read_text()
    assert "nats per sample" in console
    assert "samples/s" in console
    assert "tokens" not in console


def refused(directory, *overrides):
    with pytest.raises(UserError) as error:
        train(CONFIG, directory, *overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model.name=plm",), "use model.name=mlp or cnn"),
        (("objective.name=next_token",), "use objective.name=classification"),
        (("data.name=python_source",), "use objective.name=next_token"),
        (("data.name=python_source", "objective.name=next_token"), "use model.name=plm, gpt or huggingface"),
    ],
)
def test_parts_of_different_tasks_are_refused_with_what_fits(launched, tmp_path, overrides, words):
    assert words in launched(1, refused, tmp_path / "run", *overrides)[0]
