"""Text of one's own: nothing is lost on the way to tokens, nothing validated on is trained on, mistakes are named."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from disttrain.data import TextConfig, data_sources, encoders
from disttrain.data.encoders import ByteEncoder, TokenizerEncoder

SENTENCE = "the quick brown fox jumps over the lazy dog\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory of each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def library(folder):
    """A folder ``corpus`` of thirty texts, and one file of another kind."""
    (folder / "corpus/deep").mkdir(parents=True)
    for i in range(30):
        (folder / ("corpus/deep" if i % 2 else "corpus") / f"{i}.txt").write_text(f"text {i}")
    (folder / "corpus/image.png").write_bytes(b"\xff\xfe")


def save_bpe(path, special="<|endoftext|>", configure=lambda tokenizer: None):
    """Train a byte-level BPE on a sentence, so that any text can be encoded and decoded, and save it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(show_progress=False, vocab_size=300, special_tokens=[special], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([SENTENCE], trainer)
    configure(tokenizer)
    tokenizer.save(str(path))
    return tokenizer


def save_words(path, vocabulary, unknown=None):
    """Save a tokenizer whose tokens are whole words."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, **({"unk_token": unknown} if unknown else {})))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))


def tokens(dataset):
    """All tokens of a dataset of sequences of length 1."""
    inputs, targets = dataset.batch(torch.arange(len(dataset)))
    return [*inputs[:, 0].tolist(), targets[-1, 0].item()]


def build(**settings):
    return TextConfig(sequence_length=1, **settings).build(seed=0)


def texts(dataset):
    """The documents of a corpus of bytes."""
    return [each.decode() for each in bytes(tokens(dataset)).split(b"\0") if each]


# From text to tokens


@given(st.text())
def test_bytes_lose_nothing(text):
    encoder = ByteEncoder(separator="")
    assert encoder.encode(text.encode()).tobytes().decode() == text


@pytest.mark.parametrize(("separator", "end"), [(None, b"\0"), ("", b""), ("\n\n", b"\n\n"), ("¶", "¶".encode())])
def test_a_document_of_bytes_ends_with_the_separator(separator, end):
    assert ByteEncoder(separator).encode(b"text").tobytes() == b"text" + end


def test_a_tokenizer_loses_nothing_and_ends_a_document_with_its_own_token(folder):
    tokenizer, text = save_bpe(folder / "tok.json"), SENTENCE + "žluťoučký 漢字 🦊"
    *ids, last = TokenizerEncoder(folder / "tok.json").encode(text.encode()).tolist()
    assert tokenizer.decode(ids) == text
    assert last == tokenizer.token_to_id("<|endoftext|>")


@pytest.mark.parametrize(("special", "separator", "end"), [("</s>", None, "</s>"), ("<x>", None, None), ("<x>", "<x>", "<x>")])
def test_the_separator_is_the_tokenizers_own_or_the_configured(folder, special, separator, end):
    tokenizer = save_bpe(folder / "tok.json", special)
    encoder = TokenizerEncoder(folder / "tok.json", separator)
    assert encoder.separator == ([] if end is None else [tokenizer.token_to_id(end)])


def test_a_tokenizer_saved_with_truncation_and_padding_encodes_whole_texts(folder):
    def for_inference(tokenizer):
        tokenizer.enable_truncation(3)
        tokenizer.enable_padding(length=100)

    save_bpe(folder / "inference.json", configure=for_inference)
    save_bpe(folder / "plain.json")
    one, two = (TokenizerEncoder(folder / f"{name}.json").encode(SENTENCE.encode()) for name in ("inference", "plain"))
    assert one.tolist() == two.tolist()
    assert len(one) > 4


def test_a_long_document_is_encoded_in_pieces_to_the_same_tokens(folder, monkeypatch):
    save_bpe(folder / "tok.json")
    encoder, text = TokenizerEncoder(folder / "tok.json"), (SENTENCE * 20).encode()
    whole = encoder.encode(text)
    monkeypatch.setattr(encoders, "PIECE", 50)
    assert len(list(encoders._pieces(text.decode()))) > 5
    assert encoder.encode(text).tolist() == whole.tolist()


def test_ids_may_have_gaps(folder):
    save_words(folder / "tok.json", {"a": 0, "b": 70_000})
    encoder = TokenizerEncoder(folder / "tok.json")
    assert encoder.vocabulary_size == 70_001
    assert encoder.encode(b"b a b").tolist() == [70_000, 0, 70_000]


# Which files, and which side


def test_folders_are_searched_and_split_by_file(library):
    corpus = build(paths=["corpus"], validation_ratio=0.3)
    train, validation = texts(corpus.train), texts(corpus.validation)
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(f"text {i}" for i in range(30))
    assert 1 < len(validation) < 20


def test_the_split_is_the_same_wherever_the_folder_lies(library, folder):
    before = build(paths=["corpus"], validation_ratio=0.3)
    (folder / "corpus").rename(folder / "moved")
    assert build(paths=["moved"], validation_ratio=0.3).fingerprint == before.fingerprint


def test_a_single_file_keeps_its_end_for_validation(folder):
    (folder / "one.txt").write_text("".join(f"{i:04}" for i in range(100)))
    corpus = build(paths=["one.txt"], separator="", validation_ratio=0.1)
    assert bytes(tokens(corpus.train)).endswith(b"0089")
    assert bytes(tokens(corpus.validation)).startswith(b"0090")
    assert len(tokens(corpus.validation)) == 40


def test_a_named_file_is_taken_whatever_its_suffix(folder):
    (folder / "novel.text8").write_text("anything at all")
    assert texts(build(paths=["novel.text8"], validation_ratio=0.4).train) == ["anything a"]


def test_a_file_named_twice_is_read_once(library):
    twice = build(paths=["corpus", "corpus/0.txt", "./corpus"])
    assert twice.fingerprint == build(paths=["corpus"]).fingerprint


def test_suffixes_choose_the_files_of_a_folder(folder):
    (folder / "code").mkdir()
    for name in ("a.py", "b.PY", "c.txt"):
        (folder / "code" / name).write_text(name)
    corpus = build(paths=["code"], suffixes=[".py"])
    assert sorted(texts(corpus.train) + texts(corpus.validation)) == ["a.py", "b.PY"]


def test_what_is_validated_on_is_never_trained_on(library):
    corpus = build(paths=["corpus"], validation_paths=["corpus/deep"])
    assert sorted(texts(corpus.validation)) == sorted(f"text {i}" for i in range(1, 30, 2))
    assert sorted(texts(corpus.train)) == sorted(f"text {i}" for i in range(0, 30, 2))


def test_empty_files_are_left_out(library, folder):
    before = build(paths=["corpus"], validation_paths=["corpus/deep"]).fingerprint
    (folder / "corpus/empty.txt").touch()
    assert build(paths=["corpus"], validation_paths=["corpus/deep"]).fingerprint == before


def test_the_corpus_describes_itself(folder):
    (folder / "one.txt").write_text(SENTENCE * 10)
    tokenizer = save_bpe(folder / "tok.json")
    bytes_, tokens_ = build(paths=["one.txt"]), build(paths=["one.txt"], tokenizer="tok.json")
    assert bytes_.description == "1 file of 440 bytes in one.txt: 419 bytes to train on, 22 to validate on"
    assert (bytes_.unit, bytes_.task.vocabulary_size) == ("byte", 256)
    assert tokens_.description.startswith("1 file of 440 bytes in one.txt, encoded by tok.json: ")
    assert (tokens_.unit, tokens_.task.vocabulary_size) == ("token", tokenizer.get_vocab_size())
    assert tokens_.fingerprint != bytes_.fingerprint


# Mistakes


def write(name, content=b"some text"):
    with open(name, "wb") as file:
        file.write(content)
    return name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"paths": ["corpus", "gone", "lost.txt"]},
            r"data.paths: no such file or folder: gone, lost.txt \(looked in /",
        ),
        ({"paths": ["corpus"], "validation_paths": ["gone"]}, "data.validation_paths: no such file or folder: gone"),
        ({"paths": ["corpus"], "suffixes": [".tex"]}, r"data.paths: no file ends in .tex \(data.suffixes\)"),
        ({"paths": ["corpus"], "tokenizer": "gpt2"}, 'data.tokenizer=gpt2: no such file .*"bytes" or the path'),
        ({"paths": ["corpus"], "validation_paths": ["corpus"]}, "data.paths: nothing is left to train on"),
    ],
)
def test_missing_files_are_named_before_anything_is_loaded(library, settings, message):
    with pytest.raises(ValueError, match=message):
        TextConfig(**settings).check()


def test_empty_files_are_refused(folder):
    with pytest.raises(ValueError, match=r"all files are empty \(1 in all, the first is empty.txt\)"):
        build(paths=[write("empty.txt", b"")])


def test_too_short_a_text_is_refused_with_what_is_needed(folder):
    with pytest.raises(ValueError, match=r"the validation data: 1 tokens, but data.sequence_length=4 needs 5"):
        TextConfig(paths=[write("short.txt")], sequence_length=4).build(seed=0)


def test_an_unreadable_file_is_refused(library, folder):
    (folder / "corpus/gone.txt").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"cannot read corpus/gone.txt: No such file"):
        build(paths=["corpus"])


def test_bytes_that_are_not_text_need_no_tokenizer(folder):
    write("binary.txt", bytes(range(256)))
    assert tokens(build(paths=["binary.txt"], separator="").train)[:3] == [0, 1, 2]
    save_bpe(folder / "tok.json")
    with pytest.raises(ValueError, match=r"cannot encode binary.txt: not UTF-8 at byte 128: .*data.tokenizer=bytes"):
        build(paths=["binary.txt"], tokenizer="tok.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_file_that_is_no_tokenizer_is_refused(folder, content):
    with pytest.raises(ValueError, match=r"data.tokenizer=tok.json is not a tokenizer.json: ."):
        build(paths=[write("a.txt")], tokenizer=write("tok.json", content))


def test_a_tokenizer_without_vocabulary_is_refused(folder):
    save_words("tok.json", {})
    with pytest.raises(ValueError, match=r"data.tokenizer=tok.json has an empty vocabulary"):
        build(paths=[write("a.txt")], tokenizer="tok.json")


def test_a_word_the_tokenizer_cannot_encode_is_refused_with_the_file(folder):
    save_words("tok.json", {"some": 0})
    with pytest.raises(ValueError, match=r"cannot encode a.txt: the tokenizer failed: WordLevel error"):
        build(paths=[write("a.txt")], tokenizer="tok.json")


def test_a_separator_without_tokens_is_refused(folder):
    save_words("tok.json", {"some": 0})
    with pytest.raises(ValueError, match=r"data.separator='\\n' has no token in tok.json"):
        build(paths=[write("a.txt")], tokenizer="tok.json", separator="\n")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"paths": []},
        {"paths": ["a"], "suffixes": ["txt"]},
        {"paths": ["a"], "validation_ratio": 1.0},
        {"paths": ["a"], "validation_paths": ["b"], "validation_ratio": 0.2},
        {"paths": ["a"], "sequence_length": 0},
        {"paths": "a"},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"TextConfig"):
        TextConfig(**settings)


def test_a_resolved_config_loads_again():
    config = TextConfig(paths=["a"], validation_paths=["b"])
    assert TextConfig(**json.loads(config.model_dump_json())) == config


def test_every_source_is_registered():
    assert {"digits", "python_source", "random_tokens", "text"} <= set(data_sources.names())  # and what other tests register
    assert data_sources.default in data_sources
