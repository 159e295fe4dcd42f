"""Outlives the driver of a local Ray, to end what Ray leaves behind when its driver is killed; started by `ray_cluster.py`.

    python ray_watch.py FOLDER < a pipe that nobody writes to

Ray's servers die with their driver, even by SIGKILL, but its agents then try for minutes to report that to the servers. When the
pipe closes, every process that has ``DISTTRAIN_RAY=FOLDER`` in its environment is killed, and the folder removed. Linux only: it
looks into /proc. Nothing of ours is imported, so that it starts at once.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

VARIABLE = "DISTTRAIN_RAY"


def main(folder: str) -> None:
    """Wait for the pipe to close, and clean up."""
    sys.stdin.read()
    for _ in range(20):  # what was about to start something may have done so meanwhile
        found = marked(f"{VARIABLE}={folder}".encode())
        if not found:
            break
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def marked(mark: bytes) -> list[int]:
    """Processes with that in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    main(sys.argv[1])
