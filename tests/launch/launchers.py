"""Commands of users that start real workers: run to their end or spoken to, and whether they have left anything behind."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.training.small_run import CONFIG

ROOT = Path(__file__).parents[2]
FOREIGN = ("OMPI", "PMI", "TORCHELASTIC", "SLURM", "RANK", "WORLD_SIZE", "LOCAL_RANK", "RAY_ADDRESS")
MARK = "DISTTRAIN_TEST_MARK"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ROOT / "launchers/train.py"]
MPIEXEC = [Path(sys.executable).parent / "mpiexec", "-n", "2", sys.executable]
MPIRUN = [*MPIEXEC, "-m", "mpi4py", ROOT / "launchers/mpi.py"]
RAY = [sys.executable, ROOT / "launchers/ray_cluster.py", "--workers", "2"]
LONG = ("training.steps=5000", "training.validate_every=0", "recording.log_every=1")

BROKEN = """
from typing import Literal
from disttrain.objectives import NextToken, ObjectiveConfig, objectives
import os

@objectives.register
class BrokenConfig(ObjectiveConfig):
    name: Literal["broken"] = "broken"
    def build(self):
        return Broken()

class Broken(NextToken):
    calls = 0
    def __call__(self, model, inputs, targets):
        self.calls += 1
        if self.calls == 3 and os.environ["RANK"] == "1":
            raise ArithmeticError("the moon is in the seventh house")
        return super().__call__(model, inputs, targets)
"""

STRATEGIES = {
    "ddp": (),
    "ef21": ("strategy.name=compressed", "strategy.compressor.name=block_top_k", "strategy.feedback.name=ef21"),
    "co2": ("strategy.name=co2", "strategy.period=4"),
}


def write_config(folder):
    """The small run, one thread per worker."""
    path = folder / "small.yaml"
    path.write_text(CONFIG + "launch: {threads: 1}\n")
    return path


def write_broken_config(folder):
    """The small run, of which rank 1 raises in its third step."""
    (folder / "broken_objective.py").write_text(BROKEN)
    path = folder / "broken.yaml"
    path.write_text("imports: [broken_objective]\nobjective: {name: broken}\n" + CONFIG)
    return path


class Launched:
    """A launcher that runs in a process group of its own, as a shell would start it."""

    def __init__(self, command, environment=None):
        self._mark = secrets.token_hex(8)
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        own |= {MARK: self._mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (environment or {})
        self.process = subprocess.Popen(
            list(map(str, command)), env=own, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def wait_for_step(self, folder, step, timeout=150):
        metrics, deadline = folder / "metrics.jsonl", time.monotonic() + timeout
        while time.monotonic() < deadline:
            if metrics.exists() and f'"step": {step},' in metrics.read_text():
                return
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"step {step} not reached in {timeout} s: {self.process.communicate()}")

    def press_ctrl_c(self):
        """As a terminal does: to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, timeout):
        """Exit code, standard output and standard error."""
        try:
            output, error = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {timeout} s: {self.process.communicate()}") from None
        return self.process.returncode, output, error

    def kill(self):
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def processes(self, title=""):
        """The living processes that this launcher has started, directly or not, whose command line begins with ``title``."""
        found = []
        for path in Path("/proc").iterdir():
            try:
                marked = f"{MARK}={self._mark}".encode() in (path / "environ").read_bytes()
                dead = (path / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
                if marked and not dead and (path / "cmdline").read_text().startswith(title):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def assert_nothing_is_left(self, timeout=20):
        deadline = time.monotonic() + timeout
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = [Path(f"/proc/{pid}/cmdline").read_text() for pid in self.processes()]
        self.kill()
        assert not left, left


def finished(command, timeout=240, environment=None):
    """Exit code, standard output and standard error of a launcher, of which nothing is left."""
    launched = Launched(command, environment)
    ending = launched.end(timeout)
    launched.assert_nothing_is_left()
    return ending


def digest(folder):
    """The digest of the weights that a run has exported."""
    return json.loads((folder / "summary.json").read_text())["weights_sha256"]


def status(folder):
    return json.loads((folder / "summary.json").read_text())["status"]
