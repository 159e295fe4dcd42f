"""Where a tokenizer is, and the token that ends a text, as Hugging Face's libraries save them. Nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"


def tokenizer_at(path: Path) -> tuple[Path, str | None]:
    """The ``tokenizer.json`` that is meant, and the text of the token that ends a document, if the folder says so.

    Args:
        path: the file, or the folder that ``save_pretrained`` has written.

    Raises:
        ValueError: if there is none.
    """
    path = path.expanduser()
    if path.is_dir() and (path / FILE).is_file():
        return path / FILE, _end_of_text(path / SETTINGS)
    if path.is_file():
        return path, None
    if path.is_dir():
        raise ValueError(f"{path} holds no {FILE}; of a slow tokenizer, make one by transformers: "
                         "AutoTokenizer.from_pretrained(FOLDER).backend_tokenizer.save(FILE)")  # fmt: skip
    raise ValueError(
        f'--tokenizer {path}: no such file (allowed: "bytes", a {FILE}, or a folder with one; nothing is downloaded)'
    )


def _end_of_text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        token = json.loads(path.read_text()).get("eos_token")
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is damaged: it is no object of JSON") from None
    return token.get("content") if isinstance(token, dict) else token
