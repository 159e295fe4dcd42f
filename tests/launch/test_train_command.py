"""`disttrain train` as a user sees it: exit codes, first lines, killed and stopped workers, restarts."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disttrain.cli import main
from tests.launch.launchers import write_broken_config
from tests.training.small_run import train, write_config

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI", "PMI", "TORCHELASTIC"))}
LONG = ("training.steps=2000", "training.validate_every=0", "recording.log_every=1")


def command(*arguments):
    return [sys.executable, "-m", "disttrain.cli", *map(str, arguments)]


def finished(*arguments, timeout=120):
    return subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout)


class Training:
    """A running `disttrain train`; its workers by rank."""

    def __init__(self, config, folder, *arguments):
        self.folder = folder
        self.process = subprocess.Popen(
            command("train", config, "--workers", 2, f"run.directory={folder}", *arguments),
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def workers(self):
        """Process ids by rank, read from /proc: launcher's children with a RANK."""
        found = {}
        for path in Path("/proc").iterdir():
            try:
                parent = (path / "stat").read_text().rsplit(")", 1)[1].split()[1]
                variables = (path / "environ").read_bytes().split(b"\0")
            except (OSError, IndexError):
                continue
            ranks = [int(v[5:]) for v in variables if v.startswith(b"RANK=")]
            if parent == str(self.process.pid) and ranks:
                found[ranks[0]] = int(path.name)
        return found

    def wait_for_step(self, step):
        metrics, deadline = self.folder / "metrics.jsonl", time.monotonic() + 60
        while time.monotonic() < deadline:
            if metrics.exists() and f'"step": {step},' in metrics.read_text():
                return
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.01)
        raise AssertionError(f"step {step} not reached in 60 s")

    def end(self, timeout=45):
        """Exit code, standard output and standard error, within ``timeout`` seconds."""
        try:
            output, error = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, output, error


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


EVERY_KIND = [
    pytest.param(name, precision, marks=() if (name, precision) == ("muon", "fp32") else pytest.mark.slow)
    for name in ("adamw", "sgd", "muon")
    for precision in ("fp32", "bf16")
]


@pytest.mark.parametrize(("optimizer", "precision"), EVERY_KIND)
def test_a_killed_worker_is_restarted_and_the_result_is_the_same(launched, config, tmp_path, optimizer, precision):
    options = (
        "training.steps=60", "recording.log_every=1", "checkpoint.every=7", f"optimizer.name={optimizer}",
        f"training.precision={precision}",
    )  # fmt: skip
    launched(2, train, config, tmp_path / "straight", *options)
    training = Training(config, tmp_path / "killed", *options, "--max-restarts", "2")
    step, rank = random.randint(2, 40), random.randint(0, 1)
    training.wait_for_step(step)
    os.kill(training.workers()[rank], signal.SIGKILL)
    code, output, error = training.end(90)
    assert code == 0, error
    assert f"rank {rank} failed: it was killed by SIGKILL; starting all workers again, 2 restarts left" in error
    assert step < 8 or "continuing from step" in output
    assert summary(tmp_path / "killed")["weights_sha256"] == summary(tmp_path / "straight")["weights_sha256"]


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_without_restarts_a_killed_worker_ends_everything_with_its_rank_first(config, tmp_path, rank):
    training = Training(config, tmp_path / "run", *LONG)
    training.wait_for_step(3)
    pids = training.workers()
    started = time.monotonic()
    os.kill(pids[rank], signal.SIGKILL)
    code, _, error = training.end()
    assert code == 1
    assert error.splitlines()[0] == f"disttrain: rank {rank} failed: it was killed by SIGKILL"
    assert time.monotonic() - started < 45
    assert not any(alive(pid) for pid in pids.values())


def test_a_worker_that_raises_is_named_first_with_its_reason(tmp_path):
    code, _, error = Training(write_broken_config(tmp_path), tmp_path / "run").end()
    assert code == 1
    assert error.splitlines()[0] == "disttrain: rank 1 failed: ArithmeticError: the moon is in the seventh house"
    assert "ArithmeticError" in (tmp_path / "run" / "logs" / "rank1.log").read_text()
    assert json.loads((tmp_path / "run" / "failure.rank1.json").read_text())["rank"] == 1


@pytest.mark.parametrize(
    ("stop", "strategy"), [(signal.SIGTERM, "ddp"), pytest.param(signal.SIGINT, "local", marks=pytest.mark.slow)]
)
def test_a_stopped_run_is_saved_and_continues_to_the_same_result(launched, config, tmp_path, stop, strategy):
    options = ("training.steps=150", "recording.log_every=1", "training.validate_every=0", f"strategy.name={strategy}")
    training = Training(config, tmp_path / "run", *options)
    training.wait_for_step(8)
    training.process.send_signal(stop)
    code, _, error = training.end()
    assert code == 143, error
    assert summary(tmp_path / "run")["status"] == "stopped"
    assert 8 <= summary(tmp_path / "run")["steps"] < 150
    launched(2, train, config, tmp_path / "run", *options, "training.resume=auto")
    launched(2, train, config, tmp_path / "straight", *options)
    assert summary(tmp_path / "run")["weights_sha256"] == summary(tmp_path / "straight")["weights_sha256"]


def test_a_stop_signal_to_one_worker_stops_all(config, tmp_path):
    training = Training(config, tmp_path / "run", *LONG)
    training.wait_for_step(3)
    os.kill(training.workers()[1], signal.SIGTERM)
    assert training.end()[0] == 143
    assert summary(tmp_path / "run")["status"] == "stopped"


def test_a_killed_launcher_leaves_no_worker(config, tmp_path):
    training = Training(config, tmp_path / "run", *LONG)
    training.wait_for_step(3)
    pids = training.workers().values()
    training.process.kill()
    training.process.communicate()
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_a_mistake_is_reported_before_anything_starts(config, tmp_path):
    done = finished("train", config, "--workers", 2, "optimizer.lrr=1", "trainin.steps=3", f"run.directory={tmp_path / 'run'}")
    assert done.returncode == 2
    assert 'did you mean "lr"' in done.stderr
    assert 'did you mean "training"' in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("training.batch_size=7",), "training.batch_size"),
        (("--worker", "2"), "unknown option"),
        (("--workers", "0"), "must be at least 1"),
        (("data.name=text", 'data.paths=["/nowhere"]'), "/nowhere"),
    ],
)
def test_mistakes_in_what_was_asked_end_with_code_2_and_one_message(config, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(subprocess, "Popen", None)  # they are found before anything is started
    with pytest.raises(SystemExit) as end:
        main(["train", str(config), "--workers", "2", f"run.directory={tmp_path / 'run'}", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("launch.interface=wan7",), "launch.interface=wan7 does not exist"),
        pytest.param(("launch.backend=nccl",), "needs a GPU", marks=pytest.mark.slow),
        pytest.param(("launch.device=cuda",), "launch.device=cuda", marks=pytest.mark.slow),
        (("data.sequence_length=4096",), "the validation data: 2774 tokens"),
    ],
)
def test_mistakes_that_only_workers_find_do_too(config, tmp_path, arguments, words):
    done = finished("train", config, "--workers", 2, f"run.directory={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_resume_with_nothing_whole_exits_2(launched, config, tmp_path):
    launched(2, train, config, tmp_path / "run", "training.stop_after=5")
    next((tmp_path / "run" / "checkpoints").glob("*/manifest.json")).write_text("{")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.parent.name != "logs"]
    before = {path: path.read_bytes() for path in files}
    code, _, error = Training(config, tmp_path / "run", "training.resume=auto").end()
    assert code == 2
    assert "nothing was changed" in error
    assert "Traceback" not in error
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_torchrun_and_disttrain_train_lead_to_the_same_weights(config, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).parents[2] / "launchers" / "train.py"
    done = subprocess.run(
        [*torchrun, script, config, f"run.directory={tmp_path / 'torchrun'}"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Training(config, tmp_path / "ours").end()[0] == 0
    assert summary(tmp_path / "torchrun")["weights_sha256"] == summary(tmp_path / "ours")["weights_sha256"]


@pytest.mark.slow
def test_the_quickstart_learns_in_time(tmp_path):
    quickstart = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    done = finished("train", quickstart, "--workers", 2, f"run.directory={tmp_path / 'run'}", timeout=280)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["validation_loss"] < 1.45
    for words in ("tokens/s", "sent per worker", "waiting for the network", f"run folder       {tmp_path / 'run'}"):
        assert words in done.stdout.replace("\n", " ")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.slow
def test_a_full_disk_leaves_the_older_checkpoint_whole_and_says_so(launched, config, tmp_path):
    options = ("model.width=96", "optimizer.name=adamw", "checkpoint.every=10", "run.name=full")
    launched(2, train, config, tmp_path / "measure", *options, "training.stop_after=10")
    one = sum(path.stat().st_size for path in (tmp_path / "measure" / "checkpoints").rglob("*") if path.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={one * 8 // 5}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this sandbox does not let root mount a tmpfs")
    try:
        code, _, error = Training(config, disk / "run", *options).end()
        assert code == 1
        assert "checkpoint of step 20 not saved: No space left on device" in error
        assert "the one of step 10 is whole" in error
        kept = tmp_path / "kept"
        shutil.copytree(disk / "run" / "checkpoints", kept / "checkpoints")
        launched(2, train, config, kept, *options, "training.resume=auto")
        assert summary(kept)["steps"] == 20
    finally:
        subprocess.run(["umount", disk], check=True)
