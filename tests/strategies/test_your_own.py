"""docs/your_own_strategy.md as it stands: its code, its config, its commands."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from disttrain.cli import main
from disttrain.component import UserError
from disttrain.config import REGISTRIES
from disttrain.emulation.requirements import check_machine
from tests.training.small_run import train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your_own_strategy.md").read_text()


BLOCKS = dict(re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = BLOCKS[""].splitlines()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader would be who has saved both; what it registers is gone after the test."""
    (tmp_path / "elastic.py").write_text(BLOCKS["python"])
    (tmp_path / "elastic.yaml").write_text(BLOCKS["yaml"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield tmp_path
    sys.modules.pop("elastic", None)


def run_command(line):
    """A line of the page, in this process, without its pictures."""
    with patch("disttrain.recording.recorder.draw_pictures"), suppress(SystemExit):
        main(line.split()[1:])


def able_to_emulate():
    try:
        check_machine()
    except UserError:
        return False
    return True


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_it_is_about_forty_lines():
    lines = [line for line in BLOCKS["python"].splitlines() if line.strip()]
    assert len(lines) <= 45


def test_simulated_and_on_two_workers_the_weights_are_the_same_and_learn(folder, launched):
    run_command(f"{COMMANDS[0]} run.directory={folder / 'simulated'}")
    simulated = summary(folder / "simulated")
    launched(2, train, folder / "elastic.yaml", folder / "real", timeout=120)
    real = summary(folder / "real")
    assert real["weights_sha256"] == simulated["weights_sha256"]
    assert real["strategy"] == "elastic"
    assert real["validation_accuracy"] > 0.8
    assert real["wire_bytes"] > 12 * 4 * 2_000  # a vector in each of the 12 rounds
    last = json.loads((folder / "real" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["distance_to_centre"] > 0


def test_stopped_and_continued_it_ends_alike(folder, launched):
    for settings in (["training.stop_after=33"], ["training.resume=auto"]):  # in the middle of a round
        launched(2, train, folder / "elastic.yaml", folder / "halves", *settings, timeout=120)
    launched(2, train, folder / "elastic.yaml", folder / "whole", timeout=120)
    assert summary(folder / "halves")["weights_sha256"] == summary(folder / "whole")["weights_sha256"]


def test_a_mistyped_setting_is_refused(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*COMMANDS[0].split()[1:], "strategy.perod=5"])
    assert stopped.value.code == 2
    assert 'did you mean "period"' in capsys.readouterr().err


@pytest.mark.slow
def test_the_pages_commands_end_with_the_same_weights(folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    found = {}
    for number, line in enumerate(COMMANDS):
        if "emulate" in line and not able_to_emulate():
            continue
        command = [*line.split(), f"run.directory={folder / str(number)}"]
        subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300, stdout=subprocess.DEVNULL)
        found[line] = summary(folder / str(number))["weights_sha256"]
    assert len(set(found.values())) == 1, found
