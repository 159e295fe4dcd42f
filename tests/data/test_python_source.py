"""The standard library as a corpus: the same bytes everywhere, and whole files kept apart."""

import subprocess
import sys

import pytest
import torch

from disttrain.data import PythonSourceConfig, python_source

PROBE = "from disttrain.data import PythonSourceConfig; print(PythonSourceConfig().build(0).fingerprint)"


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of forty modules, with things beside them that must not be read."""
    monkeypatch.setattr(python_source, "standard_library", lambda: tmp_path)
    names = [f"m{i:02}.py" for i in range(20)] + [f"package/m{i:02}.py" for i in range(20)]
    unwanted = ["test/a.py", "package/tests/a.py", "site-packages/a.py", "_sysconfigdata__linux.py", "data.txt"]
    for name in names + unwanted:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"unwanted {name}" if name in unwanted else f"# {name}\n")
    return tmp_path


def text(dataset):
    """The bytes of a corpus of one-byte sequences."""
    inputs, targets = dataset.batch(torch.arange(len(dataset)))
    return bytes([*inputs[:, 0].tolist(), targets[-1, 0].item()])


def test_the_real_library_is_megabytes_on_both_sides():
    corpus = PythonSourceConfig().build(seed=0)
    assert len(corpus.train) > 30_000
    assert len(corpus.validation) > 500
    assert (corpus.task.vocabulary_size, corpus.unit) == (256, "byte")


def test_another_process_reads_the_same_bytes():
    other = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == PythonSourceConfig().build(seed=7).fingerprint


def test_only_the_library_itself_is_read_and_no_file_is_on_both_sides(library):
    corpus = PythonSourceConfig(sequence_length=1, validation_ratio=0.3).build(seed=0)
    train, validation = (set(text(side).split(b"\0")[:-1]) for side in (corpus.train, corpus.validation))
    assert not train & validation
    assert len(train | validation) == 40
    assert all(each.startswith(b"# ") for each in train | validation)


def test_files_follow_each_other_by_name(library):
    corpus = PythonSourceConfig(sequence_length=1).build(seed=0)
    documents = text(corpus.train).split(b"\0")[:-1]
    assert documents == sorted(documents)


def test_a_changed_byte_changes_the_fingerprint(library):
    before = PythonSourceConfig(sequence_length=1).build(seed=0).fingerprint
    (library / "m00.py").write_text("# M00.py\n")
    assert PythonSourceConfig(sequence_length=1).build(seed=0).fingerprint != before


def test_max_bytes_takes_the_first_files_whole(library):
    corpus = PythonSourceConfig(sequence_length=1, max_bytes=95).build(seed=0)  # a file has 9 bytes
    documents = text(corpus.train).split(b"\0")[:-1] + text(corpus.validation).split(b"\0")[:-1]
    assert sorted(documents) == [f"# m{i:02}.py\n".encode() for i in range(10)]


def test_too_small_a_limit_is_refused(library):
    with pytest.raises(ValueError, match=r"data.max_bytes=17 leaves 1 of 40 files; need 2"):
        PythonSourceConfig(max_bytes=17).check()


def test_files_too_short_for_a_sequence_are_refused(library):
    with pytest.raises(ValueError, match=r"the validation data: \d+ tokens, but data.sequence_length=500 needs 501"):
        PythonSourceConfig(sequence_length=500).build(seed=0)


def test_a_python_without_sources_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(python_source, "standard_library", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"has no .py files; use data.name=text"):
        PythonSourceConfig().check()
