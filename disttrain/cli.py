"""The command ``disttrain``."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from disttrain.component import UserError
from disttrain.config import load_config, show
from disttrain.launch.shutdown import USERS_MISTAKE


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit by its code: 0 done, 2 the user's mistake, 143 stopped by a signal after saving, 1 anything else."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)  # argparse takes no positional arguments after options
    if options := [each for each in rest if each.startswith("-")]:
        parser.error(f"unknown option: {' '.join(options)}")
    parsed.overrides += rest
    try:
        code = parsed.command(parsed)
    except UserError as error:
        print(f"disttrain: {error}", file=sys.stderr)
        code = USERS_MISTAKE
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="disttrain", description="Train PyTorch models data-parallel over any network.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train on this host's workers", description=_train.__doc__, allow_abbrev=False)
    train.add_argument("--workers", type=_positive, default=1, metavar="N", help="processes to start (default 1)")
    train.add_argument("--max-restarts", type=_natural, default=0, metavar="N", help="restarts after failures (default 0)")
    _add_config(train, _train)
    config = commands.add_parser("config", help="look at a config").add_subparsers(required=True, metavar="COMMAND")
    show_parser = config.add_parser("show", help="the resolved config", description=_show.__doc__, allow_abbrev=False)
    _add_config(show_parser, _show)
    return parser


def _add_config(parser: argparse.ArgumentParser, command: object) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that replace the file's")
    parser.set_defaults(command=command)


def _train(parsed: argparse.Namespace) -> int:
    """Train the config's model over N worker processes of this host; for several hosts start torchrun on each of them."""
    from disttrain.launch.agent import train  # seconds of imports that a mistake in the config should not wait for
    from disttrain.recording.folder import RunFolder, unused_directory

    loaded = load_config(parsed.config, parsed.overrides)
    config = loaded.config
    config.check_world(parsed.workers)
    config.check_data()
    overrides = list(parsed.overrides)
    if config.run.directory is None:
        folder, new = RunFolder(unused_directory(str(config.run.name))), True
        overrides.append(f"run.directory={folder.path}")
    else:
        folder, new = RunFolder(Path(config.run.directory)), not Path(config.run.directory).exists()
    folder.claim(resume=config.training.resume == "auto")
    code = train(parsed.config, overrides, folder.path, parsed.workers, parsed.max_restarts)
    if code == USERS_MISTAKE and new:
        shutil.rmtree(folder.path, ignore_errors=True)  # a mistake leaves nothing behind
    return code


def _show(parsed: argparse.Namespace) -> int:
    """Print the resolved config, each value with where it comes from; the output is a config file again."""
    print(show(load_config(parsed.config, parsed.overrides)), end="")
    return 0


def _positive(text: str) -> int:
    number = _natural(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
