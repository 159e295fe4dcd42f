"""The script that compares federated algorithms on digits."""

import itertools
import json
import time

import federated_digits
import pytest

from disttrain.recording.folder import RunFolder


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch, tmp_path):
    monkeypatch.setattr(federated_digits, "KEPT", tmp_path)
    monkeypatch.setattr(federated_digits, "COMMON", (*federated_digits.COMMON, "federated.rounds=3"))
    monkeypatch.setattr("disttrain.recording.recorder.draw_pictures", lambda *_: None)
    monkeypatch.setattr("disttrain.simulation.federated.run.plot_partition", lambda *_: None)


PARTITIONS = itertools.cycle(federated_digits.PARTITIONS)


@pytest.mark.parametrize(("name", "partition"), [*zip(federated_digits.ENTRIES, PARTITIONS, strict=False)])
def test_every_entry_runs_and_is_kept(name, partition):
    entry = federated_digits.ENTRIES[name]
    arguments = (name, partition, entry.lrs[0], next(iter(entry.server_lrs), None), 0)
    first = federated_digits.train(*arguments, deadline=time.monotonic() + 60)
    assert 0 < first.accuracy < 1
    assert federated_digits.train(*arguments, deadline=0.0) == first, "read, not run again"
    assert name in federated_digits.line(name, [first])


def test_nothing_is_begun_after_the_deadline():
    assert federated_digits.cell("fedavg", "shards", 3, deadline=0.0) == []


def test_ninety_percent_are_of_three_rounds(tmp_path):
    accuracies = [0.1, 0.95, 0.8, 0.9, 0.92, 0.96]
    lines = [
        {"step": step, "validation_accuracy": each, "bytes_up": step * 10**6, "gradient_evaluations": step * 5}
        for step, each in enumerate(accuracies, 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    measured = federated_digits.measure(RunFolder(tmp_path), 6)
    assert measured == (pytest.approx(sum(accuracies) / 6), 6, 6.0, 30)
    assert federated_digits.measure(RunFolder(tmp_path), 7)[0] == 0.0, "diverged on the way"
