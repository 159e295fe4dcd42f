"""A file and overrides become one tree: an override replaces the value at its key, a swapped class starts afresh."""

import os

import pytest

from disttrain.config_file import MAX_BYTES, Settings, apply_overrides, read_file

DEFAULT_NAMES = {"optimizer": "adamw", "strategy": "ddp"}


def override(tree, *overrides):
    settings = Settings(tree=tree)
    apply_overrides(settings, overrides, DEFAULT_NAMES)
    assert settings.problems == []
    return settings


def complaints(tree, *overrides):
    settings = Settings(tree=tree)
    apply_overrides(settings, overrides, DEFAULT_NAMES)
    return [str(problem) for problem in settings.problems]


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run.yaml"


def mistakes(path="run.yaml"):
    return [str(problem) for problem in read_file(path).problems]


def test_a_file_is_read_with_its_lines(file):
    file.write_text("a:\n  b: 1\n")
    settings = read_file("run.yaml")
    assert settings.tree == {"a": {"b": 1}}
    assert str(settings.origin(("a", "b"))) == "run.yaml:2"
    assert str(settings.origin(("a", "missing"))) == "run.yaml:1"
    assert str(settings.origin(("missing", "c"))) == "run.yaml"
    assert settings.has(("a", "b"))
    assert not settings.has(("a", "c"))
    assert not settings.has(("a", "b", "c"))


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(file):
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_file(file).tree == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "run.yaml: empty; write {} to take every default"),
        (b"# nothing\n", "run.yaml: empty; write {} to take every default"),
        (b"- a\n", "run.yaml: must hold keys and values"),
        (b"text", "run.yaml: must hold keys and values"),
        (b"a: 1\nb: \xff\n", "run.yaml: not UTF-8 text, in line 2"),
        ("a: 1".encode("utf-16"), "run.yaml: not UTF-8 text, in line 1"),
        (b"#" * (MAX_BYTES + 1), "run.yaml: larger than 1,048,576 bytes: not a config"),
    ],
)
def test_a_file_that_is_no_config(file, content, line):
    file.write_bytes(content)
    assert mistakes() == [line]


def test_a_file_of_the_largest_size_is_read(file):
    file.write_bytes(b"a: 1\n" + b"#" * (MAX_BYTES - 5))
    assert read_file(file).tree == {"a": 1}


def test_a_file_that_cannot_be_opened(file):
    assert mistakes("none.yaml") == ["none.yaml: cannot be read: no such file or directory"]
    assert mistakes(".") == [".: cannot be read: is a directory"]
    assert mistakes("a\0b") == [r"a\x00b: embedded null byte"]
    assert mistakes("x" * 300)[0].endswith("cannot be read: file name too long")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(file):
    file.touch(mode=0)
    assert mistakes() == ["run.yaml: cannot be read: permission denied"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("a.b=3e-4", 3e-4), ("a.b=1e6", 1_000_000), ("a.b=on", "on"), ("a.b=", None), ("a.b=x=y", "x=y"),
     ("a.b=[1, x]", [1, "x"]), ("a.b={c: 12:30}", {"c": "12:30"}), ("a.b='5'", "5"), ("a.b= 5", 5)],
)  # fmt: skip
def test_an_override_is_read_by_the_rules_of_the_file(text, value):
    settings = override({}, text)
    assert settings.tree == {"a": {"b": value}}
    assert str(settings.origin(("a", "b"))) == "command line"


def test_an_override_replaces_the_value_and_leaves_its_neighbours():
    assert override({"a": {"b": 1, "c": [1, 2]}}, "a.c=3", "d=4").tree == {"a": {"b": 1, "c": 3}, "d": 4}
    assert override({"a": {"b": {"c": 1, "d": 2}}}, "a.b={e: 3}").tree == {"a": {"b": {"e": 3}}}
    assert override({"a": None}, "a.b=1").tree == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.b", "command line: a.b: not an override; write section.key=value"),
        ("", "command line: not an override; write section.key=value"),
        ("=3", "command line: =3: not an override; write section.key=value"),
        ("a..b=3", "command line: a..b=3: not an override; write section.key=value"),
        (".a=3", "command line: .a=3: not an override; write section.key=value"),
        ("a\n=3", r"command line: a\n=3: not an override; write section.key=value"),
        ("\udcff=3", r"command line: \udcff=3: not an override; write section.key=value"),
        ("a=\udcff", "command line: a: not valid YAML: unacceptable character #xdcff: "
                     "special characters are not allowed"),
        ("a=[", "command line: a: not valid YAML: while parsing a flow node, expected the node content, "
                "but found '<stream end>'"),
        ("a=!!python/name:os.abort", "command line: a: the tag tag:yaml.org,2002:python/name:os.abort is not allowed; "
                                     "a config holds plain values only"),
        ("a={b: 1, b: 2}", "command line: a.b: given twice, first at command line"),
        ("s.t.u=1", "command line: s.t.u: s.t is not a section (default)"),
        (".".join("a" * 40) + "=1", f"command line: {'.'.join('a' * 40)}: nested deeper than 30 levels, "
                                    "or an alias that contains itself"),
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_applied(text, line):
    assert complaints({"s": {"t": [1]}}, text) == [line]


@pytest.mark.parametrize("pair", [("a=1", "a=1"), ("a.b=1", "a={c: 1}"), ("a={c: 1}", "a.b=1"), ("a.b.c=1", "a.b=null")])
def test_two_overrides_of_one_value_are_refused(pair):
    first, second = (text.partition("=")[0] for text in pair)
    assert complaints({}, *pair) == [f"command line: {second}: given twice, first as {first}"]


def test_every_bad_override_is_reported():
    assert len(complaints({"a": 1}, "b", "a.c=2", "d=[", "e=1", "e=2")) == 4


def test_a_swap_drops_what_was_written_for_the_other_class():
    settings = override({"optimizer": {"name": "muon", "lr": 1, "momentum": 0.9}}, "optimizer.lr=3", "optimizer.name=sgd")
    assert settings.tree == {"optimizer": {"lr": 3, "name": "sgd"}}
    (notice,) = settings.notices
    assert notice == "optimizer.name=sgd replaces muon, so its settings no longer apply: momentum (default)"


@pytest.mark.parametrize("written", [{"name": "adamw", "lr": 1}, {"lr": 1}])
def test_naming_the_class_that_it_is_anyway_drops_nothing(written):
    settings = override({"optimizer": dict(written)}, "optimizer.name=adamw")
    assert settings.tree == {"optimizer": {"lr": 1, "name": "adamw"}}
    assert settings.notices == []


def test_settings_without_a_name_belong_to_the_default_class():
    settings = override({"optimizer": {"lr": 1}}, "optimizer.name=sgd")
    assert settings.tree == {"optimizer": {"name": "sgd"}}
    assert "replaces adamw" in settings.notices[0]


def test_nothing_to_drop_needs_no_notice():
    assert override({"optimizer": {"name": "muon"}}, "optimizer.name=sgd").notices == []
    assert override({}, "optimizer.name=sgd").notices == []


def test_a_component_inside_a_component_is_swapped_alone():
    tree = {"strategy": {"name": "gossip", "period": 4, "compressor": {"name": "topk", "k": 3}}}
    settings = override(tree, "strategy.compressor.name=int8")
    assert settings.tree == {"strategy": {"name": "gossip", "period": 4, "compressor": {"name": "int8"}}}


def test_only_components_are_swapped():
    assert override({"run": {"name": "a", "directory": "b"}}, "run.name=c").tree == {"run": {"name": "c", "directory": "b"}}
