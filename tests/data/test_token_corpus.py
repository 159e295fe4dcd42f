"""Each sequence knows where it comes from: the document in which its first input token stands."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.data import PythonSourceConfig, RandomTokensConfig, TextConfig, python_source
from disttrain.data.encoders import EncodedDocuments
from disttrain.data.token_corpus import corpus_of, token_dataset
from disttrain.task import TokenTask


def encoded(lengths, sources):
    return EncodedDocuments(np.zeros(sum(lengths), np.uint8), np.cumsum(lengths), tuple(sources))


def named_sources(dataset):
    return [dataset.source_names[number] for number in dataset.sources.tolist()]


@given(st.lists(st.tuples(st.integers(1, 20), st.sampled_from("abc")), min_size=2, max_size=12), st.integers(1, 7))
def test_a_sequence_belongs_where_its_first_token_stands(documents, length):
    lengths, sources = zip((10, "a"), *documents, strict=True)
    dataset = token_dataset(encoded(lengths, sources), length, "the test")
    source_of_token = [source for size, source in zip(lengths, sources, strict=True) for _ in range(size)]
    assert named_sources(dataset) == [source_of_token[i * length] for i in range(len(dataset))]


def test_sources_are_numbered_as_they_appear():
    dataset = token_dataset(encoded([4, 4, 5], ["z", "a", "z"]), 4, "the test")
    assert dataset.source_names == ("z", "a")
    assert dataset.sources.tolist() == [0, 1, 0]


def test_the_fingerprint_tells_sources_apart():
    def of(sources):
        side = encoded([4, 5], sources)
        return corpus_of(side, side, task=TokenTask(256, 4), unit="byte", description="").fingerprint

    assert of(["a", "b"]) == of(["c", "d"]) != of(["a", "a"])


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize(
    ("paths", "sources"),
    [
        (["x"], {"deep", "top.txt"}),
        (["x", "y"], {"x/deep", "x/top.txt", "y/deep", "y/other"}),
        (["x/top.txt", "y"], {"x/top.txt", "y/deep", "y/other"}),
    ],
)
def test_texts_sources_lie_directly_below_each_path(tmp_path, monkeypatch, paths, sources):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "x/top.txt", "x/deep/1.txt", "x/deep/er/2.txt", "y/deep/1.txt", "y/other/1.txt", "v.txt")
    dataset = TextConfig(sequence_length=1, paths=paths, validation_paths=["v.txt"]).build(seed=0).train
    assert set(named_sources(dataset)) == set(dataset.source_names) == sources


def test_python_sources_are_what_one_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(python_source, "standard_library", lambda: tmp_path)
    write(tmp_path, "email/a.py", "email/mime/b.py", "http/c.py", "ast.py", *(f"filler{i}.py" for i in range(8)))
    corpus = PythonSourceConfig(sequence_length=1, validation_ratio=1e-9).build(seed=0)
    both = set(corpus.train.source_names) | set(corpus.validation.source_names)
    assert both == {"email", "http", "ast.py", *(f"filler{i}.py" for i in range(8))}


def test_random_tokens_come_from_nowhere():
    dataset = RandomTokensConfig().build(seed=0).train
    assert dataset.sources is None
    assert dataset.labels is None
