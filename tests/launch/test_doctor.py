"""The doctor tells what is missing and how to mend it, and measures the links between ranks as they are."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from disttrain.doctor import checks
from disttrain.doctor.command import doctor
from disttrain.launch.link_speed import interfaces, measure, pairs
from tests.launch.launchers import FOREIGN, MPIEXEC, ROOT, TORCHRUN, finished

SHAPED = """
ip link set lo mtu 1500 up && tc qdisc add dev lo root tbf rate 100mbit burst 64kb limit 1mb && exec "$@"
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)


def report(capsys):
    code = doctor(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["can_train"] == (code == 0)
    return told, {each["name"]: each for each in told["findings"]}


def test_a_machine_that_can_train_is_told_so(capsys):
    told, found = report(capsys)
    assert told["can_train"]
    for name in ("launcher", "python", "torch", "threads", "gloo", "gpu", "mpi", "ray", "emulation", "shared memory", "disk"):
        assert found[name]["detail"]
    assert doctor(as_json=False) == 0
    assert capsys.readouterr().out.endswith("\ntraining can run\n")


def test_what_is_missing_comes_with_the_command_that_mends_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(checks, "SHARED_BYTES", 2**60)
    told, found = report(capsys)
    assert told["can_train"]  # without any of it
    assert found["mpi"]["mend"] == "pip install 'disttrain[mpi]' mpich"
    assert {name: found[name]["mend"] for name in ("ray", "hf", "wandb", "tensorboard")} == {
        name: f"pip install 'disttrain[{name}]'" for name in ("ray", "hf", "wandb", "tensorboard")
    }
    assert "apt-get install iproute2 util-linux" in found["emulation"]["mend"]
    assert "size=1g /dev/shm" in found["shared memory"]["mend"]


def test_without_a_working_gloo_training_cannot_run(capsys, monkeypatch):
    def fail():
        raise RuntimeError("no such host\nmore")

    monkeypatch.setattr("disttrain.launch.backends.try_gloo", fail)
    told, found = report(capsys)
    assert not told["can_train"]
    assert "/etc/hosts" in found["gloo"]["mend"]
    assert doctor(as_json=False) == 1
    assert capsys.readouterr().err == "\ntraining cannot run: gloo\n"


def test_a_folder_that_cannot_be_written_to_is_told(capsys, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks.tempfile, "TemporaryFile", refuse)
    assert "cannot be written to" in report(capsys)[1]["disk"]["detail"]
    assert doctor(as_json=True) == 1


@pytest.mark.parametrize("environment", [{"RANK": "0"}, {"RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}])
def test_what_is_wrong_with_the_launcher_is_a_finding(capsys, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told, found = report(capsys)
    assert not told["can_train"]
    assert all(name in found["launcher"]["detail"] for name in environment)


def speeds():
    import torch.distributed as dist

    dist.init_process_group("gloo")
    links, failures = measure()
    return [(each.interface, each.first, each.second, each.latency_seconds, each.bytes_per_second) for each in links], failures


def test_every_pair_is_measured_on_every_interface_and_all_know_it(launched):
    results = launched(3, speeds)
    assert results[0] == results[1] == results[2]
    links, failures = results[0]
    assert not failures
    assert {link[:3] for link in links} == {(name, *pair) for name in interfaces() for pair in pairs(3)}
    assert all(0 < latency < 1 and speed > 0 for *_, latency, speed in links)


def test_of_many_ranks_only_neighbours_are_measured():
    assert len(pairs(12)) == 66
    assert pairs(13) == [(rank, (rank + 1) % 13) for rank in range(13)]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[*TORCHRUN[:-1], "-m"], [*MPIEXEC, "-m"]])
def test_under_a_launcher_one_report_has_the_links(launcher):
    code, output, error = finished([*launcher, "disttrain.cli", "doctor", "--json"])
    assert code == 0, error
    told = json.loads(output)
    assert {each["interface"] for each in told["links"]} == set(interfaces())
    assert {(each["first"], each["second"]) for each in told["links"]} == {(0, 1)}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("tc"), reason="shaping a link needs root and tc")
def test_a_shaped_link_measures_as_it_is_shaped():
    inside = [*map(str, TORCHRUN[:-1]), "-m", "disttrain.cli", "doctor", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    shaped = ["unshare", "--net", "sh", "-c", SHAPED, "sh", *inside]
    done = subprocess.run(shaped, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (link,) = json.loads(done.stdout)["links"]
    assert 80e6 < link["bytes_per_second"] * 8 < 105e6
