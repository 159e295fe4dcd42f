"""Blocks on Ray actors: the bits of one process, whatever happens to the actors; and no hang."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from disttrain.component import UserError
from disttrain.compression import TopK
from disttrain.federated import (
    SCAFCOM,
    Engine,
    EngineFailed,
    FedAMD,
    FedAvg,
    Order,
    Ordered,
    PacingConfig,
    RayConfig,
    RayEngine,
    SerialEngine,
)
from disttrain.federated.engines import ray_cluster
from tests.federated.faults import Faulty
from tests.federated.quadratics import federation, run
from tests.federated.test_rounds import equal
from tests.simulation.test_federated import CONFIG, algorithm, federate, growing, summary_of

pytest.importorskip("ray")
ALGORITHMS = [FedAvg(), SCAFCOM(TopK(0.2)), FedAMD(0.5), Ordered(FedAvg(), Order(score="local"), reports=PacingConfig())]
N, D, BLOCK = 14, 5, 3
CPUS = 8  # that Ray is told; 1 + 3 actors stay, and others come and go


@dataclass
class BySeed:
    """Several engines in one, chosen by the plan's seed, so that actors, which take seconds to start, serve all tests."""

    engines: list[Engine]

    def run(self, blocks):
        return self.engines[blocks[0].plan.seed].run(blocks)


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster.local(CPUS) as joined:
        yield joined


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return Faulty(tmp_path_factory.mktemp("faults"), N, D)


def on_ray(cluster, problem, actors):
    inner = BySeed([SerialEngine(algorithm, problem) for algorithm in ALGORITHMS])
    return RayEngine(inner, cluster, RayConfig(actors=actors, start_timeout=300.0, block_timeout=300.0))


@pytest.fixture(scope="module")
def one(cluster, problem):
    engine = on_ray(cluster, problem, 1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def three(cluster, problem):
    engine = on_ray(cluster, problem, 3)
    yield engine
    engine.close()


@pytest.fixture
def fault(problem):
    """Let a client have a fault in its next round."""
    yield lambda kind, client: (problem.folder / f"{kind}{client}").touch()
    assert not list(problem.folder.iterdir()), "it happened"


def serial(problem, number):
    return federation(ALGORITHMS[number], problem, cohort=11, serial=True, block_size=BLOCK, seed=number)


def same_on(engine, problem, number):
    fed = serial(problem, number)
    fed.engine = engine
    return fed


def with_settings(monkeypatch, engine, **settings):
    monkeypatch.setattr(engine, "_config", engine._config.model_copy(update=settings))


@pytest.mark.parametrize("number", range(len(ALGORITHMS)))
@pytest.mark.parametrize("actors", ["one", "three"])
def test_actors_give_the_bits_of_one_process(request, problem, number, actors):
    engine = request.getfixturevalue(actors)
    equal(run(serial(problem, number), 5), run(same_on(engine, problem, number), 5))


def test_an_actor_that_dies_in_mid_round_does_not_show_in_one_bit(three, problem, fault):
    plain, fed = run(serial(problem, 1), 2), run(same_on(three, problem, 1), 1)
    fault("die", int(plain.availability.participation.cohort(plain.clients, plain.sizes, 11, 1, 1)[4]))
    run(fed, 1)
    equal(plain, fed)


def test_an_actor_that_was_killed_is_replaced(three, problem):
    import ray

    ray.kill(three._slots[1].actor)
    equal(run(serial(problem, 2), 3), run(same_on(three, problem, 2), 3))


def test_a_block_whose_actor_dies_too_often_is_lost(one, problem, fault, monkeypatch):
    with_settings(monkeypatch, one, retries=0)
    fed = same_on(one, problem, 1)
    cohort = fed.availability.participation.cohort(fed.clients, fed.sizes, 11, 1, 0)
    fault("die", int(cohort[4]))
    report = fed.step()
    assert (report.used, report.lost, report.dropped) == (8, 3, 3)
    assert not fed.store.vectors["control"][cohort[3:6]].any()
    torch.testing.assert_close(fed.server["c"], fed.store.vectors["control"].mean(0))


def test_a_client_that_never_answers_is_dropped_at_the_deadline_and_nothing_hangs(three, problem, fault, monkeypatch):
    with_settings(monkeypatch, three, block_timeout=4.0)
    fed = same_on(three, problem, 1)
    cohort = fed.availability.participation.cohort(fed.clients, fed.sizes, 11, 1, 0)
    fault("hang", int(cohort[7]))
    start = time.monotonic()
    report = fed.step()
    assert time.monotonic() - start < 100
    assert (report.used, report.dropped) == (8, 3)
    assert not fed.store.vectors["control"][cohort[6:9]].any()
    assert sum(slot.stuck for slot in three._slots) == 1
    with_settings(monkeypatch, three, block_timeout=300.0)
    assert fed.step().used == 11, "whose answer is nobody's, though its actor is still busy or was replaced"


def test_what_clients_raise_ends_the_run_with_a_reason(one, problem, fault):
    fed = same_on(one, problem, 0)
    fault("raise", int(fed.availability.participation.cohort(fed.clients, fed.sizes, 11, 0, 0)[0]))
    with pytest.raises(EngineFailed, match=r"ZeroDivisionError: no such luck \(faults.py, line \d+, in boom\); in the block of"):
        fed.step()
    assert fed.step().used == 11, "the actor is none the worse"


def test_an_actor_that_does_not_start_is_given_up(cluster, problem, monkeypatch):
    engine = on_ray(cluster, problem, 1)
    with_settings(monkeypatch, engine, start_timeout=0.01)
    with pytest.raises(EngineFailed, match=r"no Ray actor is left .* not ready within 0.01 s"):
        same_on(engine, problem, 0).step()
    engine.close()


def test_what_cannot_be_sent_is_said(cluster, problem):
    engine = RayEngine(SerialEngine(FedAvg(), (x for x in "a generator")), cluster, RayConfig(actors=1))
    with pytest.raises(EngineFailed, match="cannot be sent to Ray actors"):
        same_on(engine, problem, 0).step()


def test_more_actors_than_cpus(cluster, problem):
    with pytest.raises(UserError, match=r"ray.actors=9 with launch.threads=1 need 9 CPUs.*has 8: take at most 8"):
        on_ray(cluster, problem, 9)
    with pytest.raises(UserError, match=r"take at most 2 actors"):
        RayConfig(actors=3).check_room(2, 4, "here")


def test_an_address_where_somebody_else_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            UserError, match=rf"address={address}: somebody listens there, but no Ray cluster answered within 1 s"
        ):
            ray_cluster._try_out(address, 1.0)


def test_actors_are_as_many_as_are_of_use(cluster, problem):
    inner = SerialEngine(FedAvg(), problem)
    assert RayEngine(inner, cluster, RayConfig()).num_actors == 8
    assert RayEngine(inner, cluster, RayConfig(), threads=2).num_actors == 4
    assert RayEngine(inner, cluster, RayConfig(), most_blocks=3).num_actors == 3


OWN = """
from torch import nn
def model():
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)]
    class Own(nn.Module):  # which no other process can import
        def __init__(self):
            super().__init__()
            self.layers, self.scale = nn.Sequential(*layers), lambda x: 0.9 * x
        def forward(self, x):
            return self.scale(self.layers(x))
    return Own()
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr("disttrain.recording.recorder.draw_pictures", lambda *_: None)
    monkeypatch.setattr("disttrain.simulation.federated.run.plot_partition", lambda *_: None)
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


def test_a_run_of_the_users_own_model_has_the_bits_of_one_process_and_resumes(cluster, config, tmp_path, monkeypatch):
    (tmp_path / "own_model_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ("model={name: import, target: own_model_of_a_test:model}", *algorithm("scafcom", "compressor={name: top_k}"))
    on_ray = ("federated.engine=ray", "federated.ray.start_timeout=5min")
    assert federate(config, tmp_path / "whole", *options, "federated.engine=serial") == 0
    assert federate(config, tmp_path / "halves", *options, *on_ray, "federated.ray.actors=1", "training.stop_after=5") == 0
    assert federate(config, tmp_path / "halves", *options, *on_ray, "federated.ray.actors=2", "training.resume=auto") == 0
    whole, halves = summary_of(tmp_path / "whole"), summary_of(tmp_path / "halves")
    assert whole["weights_sha256"] == halves["weights_sha256"]
    assert (halves["engine"], halves["clients_dropped"], halves["bytes_up"]) == ("ray", 0, whole["bytes_up"])


def test_the_users_mistake_is_one_even_on_an_actor(cluster, config, tmp_path, monkeypatch, capsys):
    own = growing(tmp_path, monkeypatch)
    on_ray = ("federated.engine=ray", "federated.ray={actors: 1, start_timeout: 5min, compute: serial}")
    assert federate(config, tmp_path / "run", own, *on_ray, "federated.rounds=40") == 2
    assert "disttrain: the model had 650 parameters at first and now has 660" in capsys.readouterr().err


def descendants(mark):
    """Processes whose environment has the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@contextmanager
def running(config, folder):
    """The command on a Ray of its own, after some rounds; it would go on for very long."""
    mark = f"DISTTRAIN_TEST_MARK={uuid.uuid4()}"
    settings = ["federated.engine=ray", "federated.rounds=1000000", "recording.log_every=1", "federated.ray.start_timeout=5min"]
    command = [sys.executable, "-m", "disttrain.cli", "federated", str(config), f"run.directory={folder}", *settings]
    environment = os.environ | dict([mark.split("=")])
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 240
        while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.5)
        assert len(descendants(mark)) > 4
        yield process, mark
    finally:
        for pid in descendants(mark):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)
        process.stderr.close()


def gone(mark):
    """Whether nothing is left before long."""
    end = time.monotonic() + 60
    while descendants(mark) and time.monotonic() < end:
        time.sleep(0.5)
    return not descendants(mark)


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_no_process(config, tmp_path):
    with running(config, tmp_path / "run") as (process, mark):
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 143
        assert gone(mark)
    assert summary_of(tmp_path / "run")["status"] == "stopped"


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process(config, tmp_path):
    with running(config, tmp_path / "run") as (process, mark):
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert gone(mark)


@pytest.mark.slow
def test_a_ray_that_dies_ends_the_run(config, tmp_path):
    with running(config, tmp_path / "run") as (process, mark):
        raylet = [pid for pid in descendants(mark) if "raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(raylet[0], signal.SIGKILL)
        assert process.wait(200) == 1
        assert gone(mark)


@pytest.mark.slow
def test_a_cluster_that_was_there_before_is_joined_and_left_running(config, tmp_path):
    """Ray's own command starts it, and the run is the same as in one process."""
    ray = str(Path(sys.executable).with_name("ray"))
    mark = f"DISTTRAIN_TEST_MARK={uuid.uuid4()}"
    environment = os.environ | dict([mark.split("=")]) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    place = tempfile.mkdtemp(prefix="disttrain-ray-", dir="/tmp")  # elsewhere others' `ray.init()` would look for it later
    head = [ray, "start", "--head", f"--port={free_port()}", "--num-cpus=4", "--include-dashboard=false", f"--temp-dir={place}"]
    command = [sys.executable, "-m", "disttrain.cli", "federated", str(config), "launch.threads=1"]
    address = ["federated.engine=ray", f"federated.ray.address=127.0.0.1:{head[3].rpartition('=')[2]}",
               "federated.ray.start_timeout=5min", "federated.ray.compute=serial"]  # fmt: skip
    try:
        started = subprocess.run(head, env=environment, timeout=200, capture_output=True, text=True)
        assert started.returncode == 0, started.stdout + started.stderr
        for name, settings in (("one", ["federated.engine=serial"]), ("two", address), ("three", address)):
            line = [*command, f"run.directory={tmp_path / name}", *settings]
            subprocess.run(line, env=environment, check=True, timeout=300, capture_output=True)
        one, *others = (summary_of(tmp_path / name)["weights_sha256"] for name in ("one", "two", "three"))
        assert others == [one, one]
        lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(mark)]
        assert any("gcs_server" in line for line in lines), "the cluster is somebody else's"
    finally:
        marked = set(descendants(mark))
        for pid in marked | children(marked):  # Ray's agents have written over their environment
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


def children(parents):
    """Processes whose parent is one of these."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) in parents:
                found.add(int(path.parent.name))
    return found


def free_port():
    """One that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
