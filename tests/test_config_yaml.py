"""YAML means what people expect, hides nothing, executes nothing, and what is written reads back."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.config_errors import Origin
from disttrain.config_yaml import MAX_DEPTH, MAX_VALUES, leaves, read_yaml, resolve_plain, write_yaml

keys = st.text(st.characters(codec="utf-8"), max_size=30)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | keys
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))

LOOKS_LIKE_SOMETHING_ELSE = ["on", "no", "Y", "null", "1e5", "0x1F", "300s", ".inf", "2024-01-01", "12:30"]
LOOKS_LIKE_SOMETHING_ELSE += ["", " ", "a b", "a: b", "- a", "a #b", "#", "'", "<<", "?", "&a", "*a", "!a", "[a", "a,b"]


def read(text):
    return read_yaml(text, (), lambda line: Origin("file.yaml", line))


def mistakes(text):
    return [str(problem) for problem in read(text).problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1e6", 1_000_000), ("1.5e3", 1500), ("1E+2", 100), ("-2e0", -2), ("1.0", 1.0), (".5", 0.5),
        ("5.", 5.0), ("012", 12), ("0o14", 12), ("0xff", 255), ("+7", 7), ("1e16", 1e16),
        ("9007199254740993", 9007199254740993),
    ],
)  # fmt: skip
def test_numbers(text, value):
    assert resolve_plain(text) == value
    assert type(resolve_plain(text)) is type(value)


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "No", "y", "12:30", "1:2:3", "2024-01-01", "1_000", "=", ".inf", ".nan", "1e999",
             "9" * 400, "-", "e5", "0b11", "nan", "infinity", "1e"]
)  # fmt: skip
def test_text_that_other_readers_turn_into_something_else(text):
    assert resolve_plain(text) == text


def test_yaml_1_1_cannot_be_asked_for():
    assert read("%YAML 1.1\n---\n{a: on, b: 12:30, c: 010}").value == {"a": "on", "b": "12:30", "c": 10}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("FALSE", False), ("~", None), ("Null", None), ("", None)])
def test_constants(text, value):
    assert resolve_plain(text) is value


def test_quotes_make_text():
    assert read("{a: '1', b: \"true\", c: ''}").value == {"a": "1", "b": "true", "c": ""}
    assert read("a: |\n  1\n").value == {"a": "1\n"}


def test_every_value_has_its_line():
    reading = read("a:\n  b: 1\n  c: [x,\n      y]\nd:\n\n  2\n")
    lines = {path: origin.line for path, origin in reading.origins.items() if path}
    assert lines == {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 3, ("a", "c", 1): 4, ("d",): 5}


def test_a_key_given_twice_is_refused_with_both_lines():
    assert mistakes("a:\n  b: 1\n  c: 2\n  b: 3\n") == ["file.yaml:4: a.b: given twice, first at file.yaml:2"]
    assert mistakes("{a: 1, 'a': 2}") == ["file.yaml:1: a: given twice, first at file.yaml:1"]


@pytest.mark.parametrize("key", ["5", "true", "~", "1.5", "[a]", "{a: b}", ""])
def test_a_key_that_is_not_text_is_refused(key):
    (line,) = mistakes(f"ok: 1\n? {key}\n: 2\n")
    assert line.startswith("file.yaml:2: ")
    assert "a key must be text" in line


def test_all_mistakes_are_found_in_one_reading():
    assert len(mistakes("a: 1\na: 2\n5: 3\nb: !!int 4\n<<: {}\n")) == 4


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:sys.exit [3]",
        "a: !!python/name:os.system",
        "a: !<tag:yaml.org,2002:python/object/apply:os.abort> []",
        "%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.abort []",
        "a: !!python/module:this",
        "a: !!set {x}",
        "a: !!binary YQ==",
        "a: !custom {x: 1}",
    ],
)
def test_tags_are_refused_and_never_executed(text):
    sys.modules.pop("this", None)
    assert "is not allowed; a config holds plain values only" in mistakes(text)[0]
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: b: c", "1: not valid YAML: mapping values are not allowed here"),
        ("a:\n\tb: 1", "2: not valid YAML: while scanning for the next token, found character '\\t' that cannot start "
                       "any token; indent with spaces, not tabs"),
        ("a: [1,\nb", "2: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        ("a: *b", "1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\na: 2", "2: not valid YAML: expected a single document in the stream, but found another document"),
        ("a: \x00", "1: not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ('"\\U99999999"', "1: not valid YAML: Python int too large to convert to C int"),
        ("%YAML 1.0\n---\n", "1: not valid YAML: version minor part can only be 2 or 1, got (1, 0)"),
        ('a: "\\ud800"', "1: a: not valid Unicode"),
        ('"\\ud800": a', '1: \\ud800: not valid Unicode'),
    ],
)  # fmt: skip
def test_text_that_is_not_yaml(text, line):
    assert mistakes(text) == [f"file.yaml:{line}"]


def test_aliases_stand_for_copies():
    reading = read("a: &x {b: [1]}\nc: *x\n")
    assert reading.value == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert reading.value["a"] is not reading.value["c"]


def test_an_alias_bomb_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (line,) = mistakes("\n".join(lines))
    assert line == f"file.yaml:1: more than {MAX_VALUES:,} values, counting what aliases stand for"


@pytest.mark.parametrize("text", ["&a [*a]", "&a {b: *a}", "[" * 5000, "a: " + "{b: " * MAX_DEPTH, "- " * 5000])
def test_endless_nesting_is_refused(text):
    assert mistakes(text) == [f"file.yaml:1: nested deeper than {MAX_DEPTH} levels, or an alias that contains itself"]


@given(st.dictionaries(keys, values, max_size=4))
def test_what_is_written_reads_back(tree):
    for text in (write_yaml(tree), write_yaml(tree, lambda path: "line 7")):
        reading = read(text)
        assert reading.problems == []
        assert (reading.value or {}) == tree


@given(keys | st.sampled_from(LOOKS_LIKE_SOMETHING_ELSE))
def test_text_stays_text(text):
    assert read(write_yaml({"a": text, "b": [text]})).value == {"a": text, "b": [text]}


def test_written_text_is_bare_where_that_is_safe():
    assert write_yaml({"a": "runs/x-1.yaml", "b": "300s", "c": "on", "d": "1e5", "e": "x y"}) == (
        'a: runs/x-1.yaml\nb: 300s\nc: "on"\nd: "1e5"\ne: "x y"\n'
    )


def test_comments_stand_in_one_column():
    text = write_yaml({"a": 1, "b": {"long_name": [1, 2]}}, lambda path: ".".join(path))
    assert text == "a: 1                 # a\nb:\n  long_name: [1, 2]  # b.long_name\n"


def test_an_empty_section_is_a_leaf():
    assert list(leaves({"a": {}, "b": {"c": 1}})) == [(("a",), {}), (("b", "c"), 1)]


@given(st.text() | st.text("{}[]:,-?&*!|>'\"%@ab1 \n\t#"))
def test_any_text_is_a_value_or_a_problem(text):
    assert all(line.isprintable() for line in mistakes(text))
