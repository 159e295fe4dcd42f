"""mpirun's workers end with torchrun's weights, fail and stop together, and never train without knowing of each other."""

import os
import signal
import sys
import time

import pytest

from disttrain.component import UserError
from disttrain.launchers.mpi import address_of_this_host, import_mpi, refuse_wrong_mpi
from tests.launch.launchers import (
    LONG,
    MPIEXEC,
    MPIRUN,
    ROOT,
    STRATEGIES,
    Launched,
    digest,
    finished,
    status,
    write_broken_config,
    write_config,
)
from tests.training.small_run import train

pytest.importorskip("mpi4py.MPI")
pytestmark = pytest.mark.skipif(not MPIRUN[0].exists(), reason="needs MPICH's mpiexec: pip install mpich")


@pytest.mark.parametrize("strategy", ["ef21", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "co2"))])
def test_mpirun_leads_to_torchruns_weights(launched, tmp_path, strategy):
    config, options = write_config(tmp_path), STRATEGIES[strategy]
    code, output, error = finished([*MPIRUN, config, f"run.directory={tmp_path / 'mpi'}", *options])
    assert code == 0, error
    assert "2 workers on cpu" in output
    _, summary = launched(2, train, config, tmp_path / "torchrun", *options)[0]
    assert digest(tmp_path / "mpi") == summary["weights_sha256"]


def test_a_rank_that_raises_ends_all_with_rank_and_reason(tmp_path):
    started = time.monotonic()
    code, _, error = finished([*MPIRUN, write_broken_config(tmp_path), f"run.directory={tmp_path / 'run'}"])
    assert code == 1
    assert error.splitlines()[0].startswith("disttrain: rank 1 on ")
    assert error.splitlines()[0].endswith("failed: ArithmeticError: the moon is in the seventh house")
    assert time.monotonic() - started < 100  # of which the start takes most on a busy machine


@pytest.mark.slow
def test_a_rank_that_raises_ends_all_in_45_seconds(tmp_path):
    launched = Launched([*MPIRUN, write_broken_config(tmp_path), f"run.directory={tmp_path / 'run'}"])
    deadline = time.monotonic() + 150
    while not list((tmp_path / "run").glob("failure.rank1.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    raised = time.monotonic()
    assert launched.end(timeout=45)[0] == 1
    launched.assert_nothing_is_left()
    assert time.monotonic() - raised < 45


@pytest.mark.slow
def test_a_killed_rank_ends_all(tmp_path):
    launched = Launched([*MPIRUN, write_config(tmp_path), f"run.directory={tmp_path / 'run'}", *LONG])
    launched.wait_for_step(tmp_path / "run", 3)
    os.kill(launched.processes(sys.executable)[-1], signal.SIGKILL)
    code, output, error = launched.end(timeout=45)
    assert code != 0
    assert "signal 9" in output + error
    launched.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_saved_and_leaves_nothing(launched, tmp_path, number):
    config, options = write_config(tmp_path), ("training.steps=400", "training.validate_every=0", "recording.log_every=1")
    run = Launched([*MPIRUN, config, f"run.directory={tmp_path / 'run'}", *options])
    run.wait_for_step(tmp_path / "run", 3)
    run.press_ctrl_c() if number == signal.SIGINT else run.process.terminate()
    code, _, error = run.end(timeout=45)
    assert code == 143, error
    run.assert_nothing_is_left()
    assert status(tmp_path / "run") == "stopped"
    code, _, error = finished([*MPIRUN, config, f"run.directory={tmp_path / 'run'}", *options, "training.resume=auto"])
    assert code == 0, error
    launched(2, train, config, tmp_path / "straight", *options)
    assert digest(tmp_path / "run") == digest(tmp_path / "straight")


@pytest.mark.slow
def test_a_mistake_is_told_once_with_exit_code_2(tmp_path):
    code, output, error = finished([*MPIRUN, write_config(tmp_path), "optimizer.lrr=1"])
    assert code == 2
    assert (output + error).count('did you mean "lr"') == 1
    assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, ("two launchers", "MPICH's mpirun (PMI_SIZE=2)", "torchrun (RANK=0, WORLD_SIZE=2)")),
        ({"TORCHELASTIC_RUN_ID": "x"}, ("two launchers", "PMI_SIZE=2", "TORCHELASTIC_RUN_ID=x")),
    ],
)
def test_two_launchers_are_told_in_one_message(tmp_path, environment, words):
    code, _, error = finished([*MPIRUN, write_config(tmp_path)], environment=environment)
    assert code == 2
    assert error.count("two launchers") == 1
    for word in words:
        assert word in error


@pytest.mark.slow
def test_mpirun_without_the_mpi_launcher_is_refused(tmp_path):
    code, _, error = finished([*MPIEXEC, ROOT / "launchers/train.py", write_config(tmp_path)])
    assert code == 2
    assert "MPICH's mpirun started 2 processes (PMI_SIZE)" in error
    assert "launchers/mpi.py" in error


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_another_mpis_mpirun_is_refused(variable):
    with pytest.raises(UserError, match=rf"{variable}=4.*mpi4py's MPI \(.*\) sees one"):
        refuse_wrong_mpi({variable: "4"}, size=1)
    refuse_wrong_mpi({variable: "4"}, size=4)
    refuse_wrong_mpi({}, size=1)


def test_torchruns_variables_are_refused_by_name():
    with pytest.raises(UserError, match=r"two launchers.*PMI_SIZE=2.*torchrun \(RANK=1, TORCHELASTIC_RUN_ID=a\)"):
        refuse_wrong_mpi({"RANK": "1", "TORCHELASTIC_RUN_ID": "a", "PMI_SIZE": "2"}, size=2)


def test_other_hosts_are_not_told_an_address_that_means_themselves(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    assert address_of_this_host(alone=True) == "127.0.0.1"
    for resolved, told in {"127.0.1.1": "node7", "10.0.0.7": "10.0.0.7"}.items():
        monkeypatch.setattr("socket.gethostbyname", lambda name, resolved=resolved: resolved)
        assert address_of_this_host(alone=False) == told


def test_without_mpi4py_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"pip install 'disttrain\[mpi\]'"):
        import_mpi()
