"""Documents are found in one order on every machine, and split whole, by their names."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.data.documents import Document, find_documents, split_documents

names = st.lists(st.text("abc/é.", min_size=1, max_size=5), min_size=2, max_size=20, unique=True)
ratios = st.floats(0.01, 0.99)


def documents(names):
    return [Document(name, Path(name), source=name) for name in names]


@given(names, ratios)
def test_a_split_is_a_partition_with_two_sides(names, ratio):
    train, validation = split_documents(documents(names), ratio)
    assert train
    assert validation
    assert sorted(train + validation) == sorted(documents(names))


@given(names, ratios, st.randoms())
def test_a_split_depends_on_names_alone(names, ratio, random):
    shuffled = random.sample(names, len(names))
    elsewhere = [Document(name, Path("/elsewhere", name), source=name) for name in shuffled]
    for here, there in zip(split_documents(documents(names), ratio), split_documents(elsewhere, ratio), strict=True):
        assert {each.name for each in here} == {each.name for each in there}


def test_more_documents_move_none_to_the_other_side():
    some = documents([f"file {i}" for i in range(200)])
    more = documents([f"file {i}" for i in range(400)])
    (train, validation), (larger_train, larger_validation) = split_documents(some, 0.2), split_documents(more, 0.2)
    assert set(train) <= set(larger_train)
    assert set(validation) <= set(larger_validation)


def test_the_share_is_about_the_ratio():
    _, validation = split_documents(documents([str(i) for i in range(10_000)]), 0.05)
    assert 370 < len(validation) < 630  # six standard deviations


def test_one_document_cannot_be_split():
    with pytest.raises(ValueError, match=r"need 2 files at least, .* got 1"):
        split_documents(documents(["alone"]), 0.5)


def test_files_are_found_recursively_by_suffix_and_sorted_by_name(tmp_path):
    for name in ("b/z.txt", "a.TXT", "b.txt", "b/a.txt", "c.py", ".git/d.txt", "b/.e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_documents(tmp_path, [".txt"], skip=lambda name: name.startswith("."))
    assert [document.name for document in found] == ["a.TXT", "b.txt", "b/a.txt", "b/z.txt"]
    assert all(document.path == tmp_path / document.name for document in found)


def test_an_unreadable_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot list .*absent: No such file"):
        find_documents(tmp_path / "absent", [".txt"], skip=lambda name: False)


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "absent")
    [document] = find_documents(tmp_path, [".txt"], skip=lambda name: False)
    with pytest.raises(ValueError, match=r"cannot read .*dangling.txt: No such file"):
        document.read()
