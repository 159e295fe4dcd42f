"""What emulation needs of the machine, found out before anything is made."""

from __future__ import annotations

import shutil
import subprocess
import sys

from disttrain.component import UserError

ISOLATED = ("unshare", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
"""Runs a command as PID 1 of a PID namespace, in an empty network namespace; whatever it starts dies with it."""

PACKAGES = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}

TRIAL = """
ip link add bridge type bridge &&
ip link add w0 type veth peer name eth0 &&
tc qdisc add dev w0 root tbf rate 100mbit burst 64kb limit 1mb
"""


def check_machine() -> None:
    """Try, in a namespace that is gone afterwards, everything that an emulated network is made of.

    Raises:
        UserError: saying what is missing and what to do.
    """
    if sys.platform != "linux":
        raise UserError("disttrain emulate needs Linux's network namespaces; elsewhere, run it in a Linux virtual machine")
    missing = [tool for tool in PACKAGES if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES[tool] for tool in missing}))
        raise UserError(f"disttrain emulate needs {', '.join(missing)}: install the package {packages} (its name in Debian)")
    _try("true", "needs root, to make network namespaces: run it by sudo, in a container with --privileged")
    _try(TRIAL, "needs a kernel with veth, bridge and the tbf queueing discipline (sch_tbf)")


def _try(script: str, need: str) -> None:
    done = subprocess.run([*ISOLATED, "sh", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"disttrain emulate {need} ({' '.join(done.stderr.split())})")
