"""Prepared folders as training data: the text's own tokens, mixed, held out and resumed exactly; damage is refused by name."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from disttrain.config import load_config
from disttrain.data import Corpus, PreparedConfig, TextConfig
from disttrain.data.preparation.command import PrepareOptions, prepare
from tests.data.test_text import save_bpe
from tests.training.small_run import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"a": "alpha", "b": "beta", "v": "gamma"}.items():
        for part in ("x", "y"):
            Path(name, part).mkdir(parents=True)
            for number in range(3):
                Path(name, part, f"{number}.txt").write_text(f"{text} {part} {number}\n" * 200)
        prepare(PrepareOptions((name,), Path(f"{name}.tokens")), lambda: False)
    return tmp_path


def build(*folders, length=16, **settings):
    return PreparedConfig(folders=list(folders), sequence_length=length, **settings).build(seed=0)


def inputs(dataset):
    return dataset.batch(torch.arange(len(dataset)))[0]


def test_a_folder_has_the_texts_own_sequences():
    text = TextConfig(paths=["a"], validation_paths=["v"], sequence_length=16).build(seed=0)
    ours = build("a.tokens", validation="v.tokens")
    for side in ("train", "validation"):
        one, other = getattr(ours, side), getattr(text, side)
        assert len(one) == len(other)
        assert torch.equal(inputs(one), inputs(other))
    assert ours.train.source_names == text.train.source_names == ("x", "y")
    assert torch.equal(ours.train.sources, text.train.sources)
    assert (ours.task, ours.unit) == (text.task, text.unit)


def test_tokens_stay_on_disk():
    assert isinstance(build("a.tokens").train.tokens, np.memmap)


def test_without_a_validation_folder_the_end_of_each_is_held_out():
    corpus = build("a.tokens", "b.tokens", validation_ratio=0.1, length=10)
    train, held_out = (bytes(inputs(side).flatten().tolist()) for side in (corpus.train, corpus.validation))
    n = os.path.getsize("a.tokens/tokens.bin")
    whole = Path("a.tokens/tokens.bin").read_bytes()
    assert train.startswith(whole[: n - round(n * 0.1)][: len(corpus.train.parts[0]) * 10])
    assert held_out.startswith(whole[n - round(n * 0.1) :][:100])
    assert b"beta" in held_out


def test_several_folders_name_their_sources():
    train = build("a.tokens", "b.tokens", validation="v.tokens").train
    assert train.source_names == ("a.tokens/x", "a.tokens/y", "b.tokens/x", "b.tokens/y")
    assert b"beta y" in bytes(inputs(train)[train.sources == 3][0].tolist())


def test_a_tokenizers_vocabulary_is_the_tasks(folder):
    tokenizer = save_bpe("tok.json")
    prepare(PrepareOptions(("a",), Path("ids"), tokenizer="tok.json"), lambda: False)
    corpus = build("ids")
    assert (corpus.task.vocabulary_size, corpus.unit) == (tokenizer.get_vocab_size(), "token")
    with pytest.raises(ValueError, match=r"a.tokens and ids were prepared with different tokenizers"):
        build("a.tokens", "ids")


def test_what_changes_the_data_changes_the_fingerprint():
    same = {build("a.tokens", "b.tokens", weights=[1, 3]).fingerprint for _ in range(2)}
    others = [
        build("a.tokens", "b.tokens"), build("b.tokens", "a.tokens", weights=[1, 3]),
        build("a.tokens", "b.tokens", weights=[1, 2]),
        build("a.tokens", "b.tokens", weights=[1, 3], validation_ratio=0.02),
    ]  # fmt: skip
    assert len(same | {each.fingerprint for each in others}) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folders": ["a.tokens"], "weights": [1.0, 2.0]}, "weights must be one for each of folders: 1, got 2"),
        ({"folders": ["a.tokens"], "weights": [0.0]}, "greater than 0"),
        ({"folders": ["a.tokens", "b.tokens"], "weights": [1.0, 1e-6]}, "less than 1 in 10,000"),
        ({"folders": ["a.tokens"], "validation": "v.tokens", "validation_ratio": 0.5}, "validation_ratio or validation"),
        ({"folders": []}, "at least 1 item"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PreparedConfig(**settings)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda: os.truncate("a.tokens/tokens.bin", 99), "a.tokens/tokens.bin has 99 bytes"),
        (lambda: Path("a.tokens/manifest.json").unlink(), "a.tokens holds no manifest.json"),
        (lambda: Path("a.tokens").rename("elsewhere"), "no such folder: a.tokens"),
    ],
)
def test_a_damaged_folder_is_refused_before_training(damage, message):
    damage()
    with pytest.raises(ValueError, match=message):
        PreparedConfig(folders=["a.tokens"]).check()


def test_a_changed_byte_is_found_unless_that_is_switched_off():
    content = bytearray(Path("a.tokens/tokens.bin").read_bytes())
    content[-1] ^= 1
    Path("a.tokens/tokens.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.tokens/tokens.bin is damaged"):
        build("a.tokens")
    assert isinstance(build("a.tokens", verify=False), Corpus)


CONFIG = """
model: {name: plm, width: 16, layers: 1, heads: 2}
data: {name: prepared, folders: [a.tokens, b.tokens], weights: [3, 1], validation: v.tokens, sequence_length: 16}
optimizer: {name: sgd, lr: 0.1}
training: {steps: 12, batch_size: 8, validate_every: 0, validation_batches: 2}
"""


def test_a_mixture_is_resumed_exactly(launched, folder):
    Path("run.yaml").write_text(CONFIG)
    config = str(folder / "run.yaml")
    launched(2, train, config, folder / "cut", "training.stop_after=5")
    launched(2, train, config, folder / "cut", "training.resume=auto")
    launched(2, train, config, folder / "straight")
    digests = [json.loads((folder / run / "summary.json").read_text())["weights_sha256"] for run in ("cut", "straight")]
    assert digests[0] == digests[1]


# A loader by its import path

LOADER = """
import hashlib
import torch
from disttrain.data import Corpus, LabelledDataset
from disttrain.task import ClassificationTask

def blobs(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(200) % classes
    inputs = torch.randn(200, 4, generator=generator) + labels[:, None]
    return Corpus(
        train=LabelledDataset(inputs[:160], labels[:160]),
        validation=LabelledDataset(inputs[160:], labels[160:]),
        task=ClassificationTask((4,), classes),
        unit="sample",
        description=f"{classes} blobs",
        fingerprint=hashlib.sha256(inputs.numpy().tobytes()).hexdigest(),
    )

def nothing():
    return 3
"""


def imported(*settings):
    Path("own_blobs.py").write_text(LOADER)
    Path("own.yaml").write_text("data: {name: import, target: own_blobs:blobs, arguments: {classes: 3}}\n")
    return load_config("own.yaml", settings).config.data


def test_a_loader_by_import_path_gets_its_arguments_and_the_seed():
    first, again, other = (imported().build(seed) for seed in (0, 0, 1))
    assert first.description == "3 blobs"
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.target=own_blobs:blob", "did you mean blobs"),
        ("data.target=gone:blobs", "the module gone cannot be imported"),
        ("data.target=own_blobs:LabelledDataset.labels", "LabelledDataset has no|is a"),
        ("data.arguments={'clases': 3}", "arguments do not fit own_blobs:blobs"),
    ],
)
def test_a_loader_that_does_not_fit_is_refused_with_the_config(setting, message):
    with pytest.raises(ValueError, match=message):
        imported(setting)


def test_a_loader_that_returns_something_else_is_refused():
    with pytest.raises(ValueError, match=r"data.target=own_blobs:nothing returned a int, not a disttrain.data.Corpus"):
        imported("data.target=own_blobs:nothing", "data.arguments={}").build(0)


def test_the_manuals_loader_trains_as_it_stands(launched, folder):
    manual = (ROOT / "docs/data.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", manual, re.DOTALL)
    (settings,) = [block for block in re.findall(r"```yaml\n(.*?)```", manual, re.DOTALL) if "name: import" in block]
    (folder / "my_data.py").write_text(code)
    (folder / "own.yaml").write_text(settings)
    _, summary = launched(1, train, folder / "own.yaml", folder / "run", "training.steps=40", "optimizer.lr=0.01")[0]
    assert summary["validation_loss"] < 1.0  # ln 3 = 1.1 without learning


def test_the_manuals_mixture_is_a_config(folder):
    manual = (ROOT / "docs/data.md").read_text()
    (settings,) = [block for block in re.findall(r"```yaml\n(.*?)```", manual, re.DOTALL) if "name: prepared" in block]
    (folder / "mixture.yaml").write_text(settings)
    data = load_config(folder / "mixture.yaml").config.data
    assert (data.name, data.weights, data.sequence_length) == ("prepared", [7, 3], 512)
