"""The files for Slurm and Kubernetes: what they would run, run here with the variables that those would set."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.launch.launchers import ROOT, Launched, digest, status, write_config

SBATCH, KUBERNETES = ROOT / "launchers/slurm.sbatch", ROOT / "launchers/kubernetes.yaml"
FAKE_SRUN = """#!/usr/bin/env bash
# As srun does: starts the task, and passes SIGTERM on to it.
while [[ $1 == --* ]]; do shift; done
"$@" &
trap 'kill -TERM $!' TERM
wait $! ; code=$?
[ $code -gt 128 ] && { wait $!; code=$?; }
exit $code
"""
FAKE_SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$SCONTROL_CALLS"
[ "$1" = requeue ] || echo localhost
"""


def fake_slurm(folder):
    """Slurm's variables for a job on one node, and its commands in front of the search path."""
    (folder / "bin").mkdir()
    for name, text in {"srun": FAKE_SRUN, "scontrol": FAKE_SCONTROL}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SLURM_NNODES": "1", "WORKERS_PER_NODE": "2",
        "SLURM_JOB_NODELIST": "localhost", "PYTHON": sys.executable, "SCONTROL_CALLS": str(folder / "scontrol"),
    }  # fmt: skip


def pods_variables():
    """What two pods have in common; the port is one that was free just now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def pod(kind):
    """The container of a PyTorchJob's replicas of a kind."""
    job = YAML(typ="safe").load(KUBERNETES.read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    assert replicas["Master"]["replicas"] == 1
    return replicas[kind]["template"]["spec"]["containers"][0]


def test_the_batch_script_is_bash():
    subprocess.run(["bash", "-n", SBATCH], check=True, timeout=20)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SBATCH], check=True, timeout=60)


def test_the_batch_script_tells_how_to_use_it_and_asks_for_its_warning(tmp_path):
    done = subprocess.run(["bash", SBATCH], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr
    directives = [line.split()[1] for line in SBATCH.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--ntasks-per-node=1", "--signal=B:USR1@120"} <= set(directives)


@pytest.mark.slow
def test_slurms_early_warning_saves_and_queues_again_and_the_second_run_goes_on(tmp_path):
    environment, config, folder = fake_slurm(tmp_path), write_config(tmp_path), tmp_path / "run"
    options = [f"run.directory={folder}", "training.steps=250", "training.validate_every=0", "recording.log_every=1"]
    job = Launched(["bash", SBATCH, config, *options], environment)
    job.wait_for_step(folder, 3)
    os.kill(job.process.pid, signal.SIGUSR1)
    code, output, error = job.end(timeout=60)
    assert code == 0, error
    job.assert_nothing_is_left()
    assert status(folder) == "stopped"
    assert Path(environment["SCONTROL_CALLS"]).read_text().splitlines()[-1] == "requeue 4711"
    again = Launched(["bash", SBATCH, config, *options], environment)
    code, output, error = again.end(timeout=240)
    assert code == 0, error
    assert "continuing from step" in output
    assert status(folder) == "finished"


def test_both_kinds_of_pods_run_the_same_shell_command():
    master, worker = pod("Master"), pod("Worker")
    assert master == worker
    assert (master["name"], master["command"]) == ("pytorch", ["sh", "-c"])
    subprocess.run(["sh", "-n", "-c", master["args"][0]], check=True, timeout=20)


@pytest.mark.slow
def test_two_pods_train_together(tmp_path):
    config = write_config(tmp_path)
    command = pod("Master")["args"][0].replace("/etc/disttrain/run.yaml", str(config)).replace("/runs", str(tmp_path))
    command = command.replace("exec python", f"exec {sys.executable}")
    common = pods_variables()
    pods = [Launched(["sh", "-c", command], common | {"RANK": str(rank), "WORKERS_PER_POD": "1"}) for rank in range(2)]
    for each in pods:
        code, _, error = each.end(timeout=240)
        assert code == 0, error
        each.assert_nothing_is_left()
    assert json.loads((tmp_path / "quickstart" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_pods_that_run_the_worker_itself_find_each_other_too(tmp_path):
    config, started = write_config(tmp_path), time.monotonic()
    command = [sys.executable, ROOT / "launchers/train.py", config, f"run.directory={tmp_path / 'run'}"]
    common = pods_variables()
    pods = [Launched(command, common | {"RANK": str(rank)}) for rank in range(2)]
    for each in pods:
        code, _, error = each.end(timeout=240)
        assert code == 0, error
    assert len(digest(tmp_path / "run")) == 64
    assert time.monotonic() - started < 240
