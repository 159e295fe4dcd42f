"""A running `disttrain emulate`, as a user has it, and what of it is left on the machine."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

# 110,944 parameters: 0.44 MB of gradients, one bucket of DDP, so that communication overlaps nothing.
CONFIG = """
model: {name: plm, width: 64, layers: 2, heads: 2}
data: {name: python_source, sequence_length: 32, max_bytes: 400kB, validation_ratio: 0.2}
optimizer: {name: sgd, lr: 0.1}
strategy: {name: ddp}
training: {steps: 40, batch_size: 8, validate_every: 0, validation_batches: 2}
recording: {log_every: 1}
"""

needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="network namespaces need Linux and root; run the tests by sudo"
)


class Emulation:
    """The command, started; everything that it starts carries the same mark in its environment."""

    def __init__(self, folder, *arguments, bandwidth="100mbit", workers=2, events=None):
        self.run, self._mark, self.namespaces = folder / "run", f"disttrain-test={uuid.uuid4().hex}", set()
        config = folder / "small.yaml"
        config.write_text(CONFIG)
        if events is not None:
            (folder / "events.yaml").write_text(events)
            arguments = (*arguments, "--events", folder / "events.yaml")
        self._links = links()
        name, value = self._mark.split("=")
        command = [sys.executable, "-m", "disttrain.cli", "emulate", config, "--workers", workers, "--bandwidth", bandwidth]
        self.process = subprocess.Popen(
            [*map(str, command), f"run.directory={self.run}", *map(str, arguments)],
            env=os.environ | {name: value}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end(self, timeout=120):
        """Exit code, standard output and standard error."""
        try:
            output, error = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, output, error

    def wait_for_step(self, step):
        deadline = time.monotonic() + 90
        while f'"step": {step},' not in self.metrics_text():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, f"step {step} not reached in 90 s"
            time.sleep(0.02)

    def wait_for_event(self, number=1):
        deadline, log = time.monotonic() + 90, self.run / "events.jsonl"
        while not log.exists() or len(log.read_text().splitlines()) < number:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, f"event {number} did not happen in 90 s"
            time.sleep(0.02)

    def metrics_text(self):
        return (self.run / "metrics.jsonl").read_text() if (self.run / "metrics.jsonl").exists() else ""

    def processes(self):
        """What the command has started and is alive, by process id with the network namespace; the command itself too."""
        found = {}
        for path in Path("/proc").iterdir():
            try:
                if self._mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found[int(path.name)] = os.readlink(path / "ns" / "net")
            except (OSError, ValueError):
                continue  # it has just ended, or is no process
        return found

    def notice_namespaces(self):
        """Remember the namespaces of now, for :meth:`assert_nothing_left`; returns how many there are beside our own."""
        self.namespaces = set(self.processes().values()) - {os.readlink("/proc/self/ns/net")}
        return len(self.namespaces)

    def assert_nothing_left(self):
        left, deadline = self._left(), time.monotonic() + 10
        while any(left) and time.monotonic() < deadline:  # a dying process loses its environment before its namespace
            time.sleep(0.05)
            left = self._left()
        assert left == ({}, set(), set())

    def _left(self):
        """Processes, links and namespaces that were not there before the command."""
        listed = subprocess.run(["lsns", "--noheadings", "-t", "net", "-o", "NS"], capture_output=True, text=True, check=True)
        namespaces = {f"net:[{number}]" for number in listed.stdout.split()}
        return self.processes(), set(links()) - set(self._links), namespaces & self.namespaces

    def report(self):
        return json.loads((self.run / "emulation.json").read_text())

    def summary(self):
        return json.loads((self.run / "summary.json").read_text())

    def records(self):
        return [json.loads(line) for line in self.metrics_text().splitlines()]


def links():
    """The names of this namespace's network links."""
    done = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True)
    return sorted(line.split()[0] for line in done.stdout.splitlines())
