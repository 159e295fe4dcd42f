"""Prepared tokens are those of the text, however often the preparation was interrupted; what is damaged is refused by name."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.cli import main
from disttrain.component import UserError
from disttrain.data.encoders import TokenizerEncoder
from disttrain.data.preparation import command, inputs, writing
from disttrain.data.preparation.command import PrepareOptions, prepare
from disttrain.data.preparation.inputs import TextInput, find_inputs
from disttrain.data.prepared_files import Manifest, PreparedTokens
from tests.data.test_text import SENTENCE, save_bpe

ROOT = Path(__file__).parents[2]
FILES = {"a.txt": "one\ntwo\n" * 40, "deep/b.md": "drei žluťoučký 漢字 🦊\n" * 30, "empty.txt": "", "c.txt": "x" * 700}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def corpus(folder):
    for name, text in FILES.items():
        (folder / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "corpus" / name).write_text(text)
    return "corpus"


@pytest.fixture
def small(monkeypatch):
    """Pieces and batches of a few bytes, so that a short text has many, and a note after each."""
    monkeypatch.setattr(inputs, "PIECE_BYTES", 32)
    monkeypatch.setattr(inputs, "LONGEST_BYTES", 64)
    monkeypatch.setattr(command, "BATCH_BYTES", 100)
    monkeypatch.setattr(writing, "SAVE_SECONDS", 0.0)


def run(*paths, output="out", stop=lambda: False, **options):
    return prepare(PrepareOptions(tuple(map(str, paths)), Path(output), **options), stop)


def content(output="out"):
    return {path.name: path.read_bytes() for path in Path(output).iterdir()}


def test_bytes_are_all_documents_in_order_with_a_zero_byte_after_each(corpus):
    assert run(corpus) == 0
    texts = [FILES[name] for name in ("a.txt", "c.txt", "deep/b.md") if FILES[name]]
    assert content()["tokens.bin"] == b"".join(text.encode() + b"\0" for text in texts)
    assert set(content()) == {"tokens.bin", "ends.bin", "manifest.json"}
    manifest = Manifest.read(Path("out"))
    assert (manifest.unit, manifest.vocabulary_size, manifest.sources) == ("byte", 256, ("a.txt", "c.txt", "deep", "empty.txt"))


def test_a_tokenizer_gives_the_same_tokens_as_for_whole_texts(corpus):
    save_bpe("tok.json")
    run(corpus, tokenizer="tok.json")
    encoder = TokenizerEncoder(Path("tok.json"))
    whole = [encoder.encode(FILES[name].encode()) for name in ("a.txt", "c.txt", "deep/b.md")]
    assert PreparedTokens.open(Path("out"), verify=True).tokens.tolist() == np.concatenate(whole).tolist()


@given(st.text("ab\nž🦊").map(str.encode) | st.binary(max_size=200), st.integers(1, 40), st.integers(0, 40))
def test_pieces_join_to_the_file_and_begin_alike_from_any_place(tmp_path_factory, text, piece, more):
    path = tmp_path_factory.mktemp("pieces") / "text"
    path.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "PIECE_BYTES", piece)
        patch.setattr(inputs, "LONGEST_BYTES", piece + more)
        whole = list(TextInput("", path, "").pieces(0))
        assert b"".join(each.text for each in whole) == text
        assert [each.ends for each in whole] == [False] * (len(whole) - 1) + [True] * bool(whole)
        longest = piece + more
        assert all(each.text.endswith(b"\n") or longest - 3 <= len(each.text) <= longest or each.ends for each in whole)
        for number, each in enumerate(whole):
            assert list(TextInput("", path, "").pieces(each.next)) == whole[number + 1 :]


@given(st.text("a\nž漢🦊", max_size=60), st.integers(8, 30))
def test_no_character_is_cut(tmp_path_factory, text, piece):
    path = tmp_path_factory.mktemp("pieces") / "text"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "PIECE_BYTES", piece)
        patch.setattr(inputs, "LONGEST_BYTES", piece)
        assert "".join(each.text.decode() for each in TextInput("", path, "").pieces(0)) == text


@pytest.mark.parametrize("tokenizer", ["bytes", "tok.json"])
@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_interrupted_and_continued_leads_to_the_same_bytes(corpus, small, tokenizer, after):
    save_bpe("tok.json")
    run(corpus, output="straight", tokenizer=tokenizer)
    code, starts = 143, 0
    while code == 143:
        left = iter([False] * (after + 1))
        code, starts = run(corpus, tokenizer=tokenizer, stop=lambda left=left: next(left, True)), starts + 1
    assert code == 0
    assert starts >= 2
    assert content() == content("straight")


def test_what_was_written_after_the_last_note_does_not_count(corpus, small):
    run(corpus, output="straight")
    left = iter([False] * 5)
    assert run(corpus, stop=lambda: next(left, True)) == 143
    for name in ("tokens.bin", "ends.bin"):  # as when killed between the writing and the note
        with open(f"out/{name}", "ab") as file:
            file.write(b"rubbish!")
    assert run(corpus) == 0
    assert content() == content("straight")


def test_what_is_finished_is_not_done_again(corpus, capsys):
    run(corpus)
    before = Path("out/tokens.bin").stat().st_mtime_ns
    assert run(corpus) == 0
    assert "finished already" in capsys.readouterr().out
    assert Path("out/tokens.bin").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds other prepared data"):
        run("corpus/a.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Path("corpus/c.txt").write_text("other"), r"files have changed since out was begun \(corpus/c.txt\)"),
        (lambda: Path("corpus/d.txt").write_text("new"), r"files have changed since out was begun \(corpus/d.txt\)"),
        (lambda: Path("out/progress.json").write_text("{"), r"out/progress.json is damaged"),
        (lambda: os.truncate("out/tokens.bin", 3), r"out/tokens.bin has 3 bytes, and \d+ were written"),
    ],
)
def test_a_preparation_that_cannot_be_continued_is_refused(corpus, small, change, message):
    left = iter([False] * 5)
    run(corpus, stop=lambda: next(left, True))
    change()
    with pytest.raises(UserError, match=message):
        run(corpus)


def test_another_tokenizer_does_not_continue(corpus, small):
    save_bpe("tok.json")
    run(corpus, stop=lambda: True)
    with pytest.raises(UserError, match=r"was begun with tokenizer 'bytes', not '[0-9a-f]{64}'"):
        run(corpus, tokenizer="tok.json")


def test_a_folder_that_holds_something_else_is_refused(corpus):
    with pytest.raises(UserError, match="corpus/deep is not empty"):
        run(corpus, output="corpus/deep")


# Other inputs


def test_lines_of_json_are_documents(folder):
    lines = [{"text": "one"}, {"text": "", "id": 1}, {"text": "zwei\nž", "id": 2}]
    Path("x.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    run("x.jsonl")
    assert content()["tokens.bin"] == "one\0zwei\nž\0".encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"x.jsonl, byte 15: not a line of JSON"),
        ('{"txt": 1}', r"x.jsonl, byte 15: not an object with the field 'text' \(--field\)"),
        ("[1]", r"x.jsonl, byte 15: not an object"),
        ('{"text": 3}', r"x.jsonl, byte 15: 'text' is a int"),
    ],
)
def test_lines_that_are_no_documents_are_told_with_their_place(folder, line, message):
    Path("x.jsonl").write_text('{"text": "on"}\n' + line)
    with pytest.raises(UserError, match=message):
        run("x.jsonl")


def test_tables_and_saved_data_sets_give_the_same_as_lines(folder, small, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("disttrain.data.preparation.columns.ROWS", 4)
    texts = [f"text {i}\n" * i for i in range(30)]
    table = datasets.Dataset.from_dict({"body": texts, "id": list(range(30))})
    table.save_to_disk("saved")
    table.to_parquet("x.parquet")
    Path("x.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    for output, path in {"lines": "x.jsonl", "table": "x.parquet", "arrow": "saved"}.items():
        left = iter([False] * 7)
        assert run(path, output=output, field="body", stop=lambda left=left: next(left, True)) == 143
        assert run(path, output=output, field="body") == 0
    assert content("lines")["tokens.bin"] == "".join(text + "\0" for text in texts if text).encode()
    assert content("lines")["tokens.bin"] == content("table")["tokens.bin"] == content("arrow")["tokens.bin"]
    for path in ("x.parquet", "saved"):
        with pytest.raises(UserError, match=r"no column 'text' \(--field\); it has body, id"):
            run(path, output="other-" + path)


def test_splits_must_be_named(folder):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict(train=part, test=part).save_to_disk("splits")
    with pytest.raises(UserError, match="holds the splits test, train: name one of them, such as splits/test"):
        run("splits")
    assert run("splits/train") == 0


def test_the_folder_of_a_tokenizer_tells_how_a_document_ends(corpus):
    Path("tok").mkdir()
    tokenizer = save_bpe("tok/tokenizer.json", special="<end>")
    Path("tok/tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    run(corpus, tokenizer="tok")
    tokens = PreparedTokens.open(Path("out"), verify=True).tokens
    assert tokens[-1] == tokenizer.token_to_id("<end>")
    assert (tokens == tokens[-1]).sum() == 3


def test_a_tokenizer_saved_by_transformers_is_read(corpus):
    transformers = pytest.importorskip("transformers")
    tokenizer = save_bpe("tok.json")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained("saved")
    run(corpus, tokenizer="saved")
    expected = [*fast(FILES["a.txt"], add_special_tokens=False)["input_ids"], fast.eos_token_id]
    assert PreparedTokens.open(Path("out"), verify=True).tokens[: len(expected)].tolist() == expected


# Damage and mistakes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda: os.truncate("out/tokens.bin", 100), r"out/tokens.bin has 100 bytes, and \d+ were written"),
        (lambda: Path("out/ends.bin").unlink(), r"out/ends.bin is missing"),
        (lambda: flip("out/tokens.bin"), r"out/tokens.bin is damaged: its SHA-256"),
        (lambda: flip("out/ends.bin"), r"out/ends.bin is damaged: its SHA-256"),
        (lambda: Path("out/manifest.json").write_text("{}"), r"out/manifest.json is damaged"),
        (lambda: os.truncate("out/manifest.json", 50), r"out/manifest.json is damaged"),
        (lambda: Path("out/manifest.json").unlink(), r"out holds no manifest.json: make one by `disttrain data prepare"),
    ],
)
def test_damage_is_found_and_its_file_named(corpus, damage, message):
    run(corpus)
    damage()
    with pytest.raises(ValueError, match=message):
        PreparedTokens.open(Path("out"), verify=True)


def flip(name):
    content = bytearray(Path(name).read_bytes())
    content[len(content) // 2] ^= 1
    Path(name).write_bytes(content)


def test_an_unfinished_folder_is_told_apart(corpus):
    run(corpus, stop=lambda: True)
    with pytest.raises(ValueError, match="out is not finished: give the command `disttrain data prepare` that began it again"):
        Manifest.read(Path("out"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone", "--output", "out"), "no such file or folder: gone"),
        (("corpus", "--output", "out", "--suffixes", ".tex"), "no file ends in .tex"),
        (("corpus", "--output", "out", "--suffixes", "tex"), "must be endings with a dot"),
        (("corpus", "--output", "out", "--tokenizer", "gpt2"), "--tokenizer gpt2: no such file"),
        (("corpus", "--output", "out", "--tokenizer", "corpus"), "corpus holds no tokenizer.json"),
        (("corpus/empty.txt", "--output", "out"), "all files are empty"),
    ],
)
def test_mistakes_end_with_code_2_and_one_message(corpus, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(["data", "prepare", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_missing_extra_is_told_with_its_command(folder, monkeypatch):
    Path("x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'disttrain\[hf\]'"):
        run("x.parquet")


def test_files_are_found_once_and_in_order(corpus):
    found = find_inputs(["corpus/c.txt", "corpus"], [".txt", ".md"], "text")
    assert [each.name for each in found] == ["corpus/c.txt", "corpus/a.txt", "corpus/deep/b.md", "corpus/empty.txt"]
    assert [each.source for each in found] == ["corpus/c.txt", "corpus/a.txt", "corpus/deep", "corpus/empty.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_command_killed_again_and_again_ends_with_the_same_bytes(folder, number):
    save_bpe("tok.json")
    Path("long.txt").write_text((SENTENCE * 50 + "\n") * 3000)
    command = [sys.executable, "-m", "disttrain.cli", "data", "prepare", "long.txt", "--tokenizer", "tok.json", "--output"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "straight"], env=environment, check=True, timeout=200)
    for _ in range(3):
        process = subprocess.Popen([*command, "out"], env=environment)
        deadline = time.monotonic() + 60
        before = Path("out/progress.json").read_text() if Path("out/progress.json").exists() else ""
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
            if Path("out/progress.json").exists() and Path("out/progress.json").read_text() != before:
                break
        process.send_signal(number)
        process.wait(timeout=60)
    subprocess.run([*command, "out"], env=environment, check=True, timeout=200)
    assert content() == content("straight")
