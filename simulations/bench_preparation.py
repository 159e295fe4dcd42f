"""How fast `disttrain data prepare` is, in how little memory, and whether killing it changes a byte.

    python simulations/bench_preparation.py --megabytes 1000 [--vocabulary 8192] [--folder /tmp/preparation]

The text is this machine's Python sources, over and over, in ten files. It is prepared twice: in one go, and killed three times
by SIGKILL at a quarter, a half and three quarters, and continued. Prints megabytes of text per second, the largest resident
memory of the process, and whether both folders have the same bytes. With --vocabulary, a byte-level BPE is trained on a part
first; without, tokens are bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from itertools import cycle
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FILES = 10


def write_text(folder: Path, num_bytes: int) -> None:
    sources = cycle(sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")))
    folder.mkdir(parents=True)
    for number in range(FILES):
        with (folder / f"{number}.txt").open("wb") as file:
            while file.tell() < num_bytes // FILES:
                file.write(next(sources).read_bytes().decode(errors="ignore").encode())


def train_tokenizer(text: Path, path: Path, vocabulary: int) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        show_progress=False, vocab_size=vocabulary, special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    with text.open(errors="ignore") as file:
        tokenizer.train_from_iterator([file.read(10_000_000)], trainer)
    tokenizer.save(str(path))


def start(text: Path, output: Path, tokenizer: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "disttrain.cli",
        "data",
        "prepare",
        str(text),
        "--output",
        str(output),
        "--tokenizer",
        tokenizer,
    ]
    return subprocess.Popen(command)


def finish(process: subprocess.Popen[bytes], timeout: float) -> None:
    try:
        code = process.wait(timeout=timeout)
    finally:
        process.kill()
    if code:
        raise SystemExit(f"disttrain data prepare ended with {code}")


def kill_at(text: Path, output: Path, tokenizer: str, share: float, total: int, timeout: float) -> int:
    """Start it, and kill it when its note says that it is so far; returns the input bytes noted then."""
    process, deadline = start(text, output, tokenizer), time.monotonic() + timeout
    note = output / "progress.json"
    while time.monotonic() < deadline and process.poll() is None:
        done = json.loads(note.read_text())["input_bytes"] if note.exists() else 0
        if done >= share * total:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return int(json.loads(note.read_text())["input_bytes"]) if note.exists() else total


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--vocabulary", type=int, default=0, help="of a tokenizer; 0: bytes")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/preparation"), help="is removed and made anew")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for each of the two preparations")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    text, tokenizer = options.folder / "text", "bytes"
    write_text(text, options.megabytes * 10**6)
    total = sum(path.stat().st_size for path in text.iterdir())
    if options.vocabulary:
        tokenizer = str(options.folder / "tokenizer.json")
        train_tokenizer(text / "0.txt", Path(tokenizer), options.vocabulary)
    before = time.monotonic()
    finish(start(text, options.folder / "straight", tokenizer), options.timeout)
    seconds = time.monotonic() - before
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    kills = [kill_at(text, options.folder / "killed", tokenizer, share, total, options.timeout) for share in (0.25, 0.5, 0.75)]
    finish(start(text, options.folder / "killed", tokenizer), options.timeout)
    same = digest(options.folder / "straight") == digest(options.folder / "killed")
    print(f"text              {total / 1e6:,.0f} MB in {FILES} files, as {tokenizer if tokenizer == 'bytes' else 'BPE tokens'}")
    print(
        f"speed             {total / 1e6 / seconds:.1f} MB/s with start and end ({seconds:.1f} s, load {os.getloadavg()[0]:.1f})"
    )
    print(f"peak memory       {peak / 1e6:,.0f} MB")
    print(f"killed at         {', '.join(f'{done / total:.1%}' for done in kills)}")
    print(f"the same bytes    {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
