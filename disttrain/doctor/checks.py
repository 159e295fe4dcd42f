"""What a machine has of what disttrain can use, and for each thing missing the command that mends it.

Nothing is changed. Only what every training needs (``needed``) decides whether training can run.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from disttrain.component import UserError

SHARED_MEMORY = Path("/dev/shm")
SHARED_BYTES, DISK_BYTES = 2**28, 2**30
"""Less is told: nccl and loaders with several workers use shared memory, checkpoints need a disk."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    mend: str = ""
    """A command, where something is missing."""
    needed: bool = False
    """Whether no training can run without it."""


def findings() -> Iterator[Finding]:
    """Everything, one thing after another."""
    for check in CHECKS:
        yield from check()


def _python() -> Iterator[Finding]:
    ok = sys.version_info >= (3, 11)
    yield Finding(
        "python", ok, f"{platform.python_version()} on {platform.platform()}", "" if ok else "uv python install 3.12", True
    )
    yield Finding("disttrain", True, version("disttrain"), needed=True)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything
        yield Finding("torch", False, f"cannot be imported: {error}", "pip install --force-reinstall torch", True)
        return
    ok = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 9)
    yield Finding("torch", ok, torch.__version__, "" if ok else "pip install --upgrade 'torch>=2.9'", True)
    yield _threads()
    yield from _backends()
    yield _gpu()


def _threads() -> Finding:
    import torch

    from disttrain.launch.cpu import amx_traps

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS")
    detail = f"{cores} cores for this process; torch has {torch.get_num_threads()} threads"
    detail += f" (OMP_NUM_THREADS={asked})" if asked else ""
    detail += "; a run gives each worker its share of the cores, or launch.threads"
    if amx_traps():
        detail += (
            "; this CPU advertises AMX and traps on it: runs do without, a bare script needs ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16"
        )
    return Finding("threads", True, detail)


def _backends() -> Iterator[Finding]:
    from disttrain.launch import backends

    if not backends.has_gloo():
        yield Finding("gloo", False, "this torch was built without it", "pip install --force-reinstall torch", True)
        return
    try:
        backends.try_gloo()
        yield Finding("gloo", True, "a group of one was made and left", needed=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        mend = f"echo '127.0.1.1 {socket.gethostname()}' >> /etc/hosts"  # gloo looks up the host's own name
        yield Finding("gloo", False, f"no group can be made: {reason}; or set launch.interface", mend, True)
    nccl = backends.has_nccl()
    yield Finding("nccl", nccl, "available" if nccl else "this torch has none: GPUs would speak through gloo")


def _gpu() -> Finding:
    import torch

    count = torch.cuda.device_count()
    if count:
        names = [torch.cuda.get_device_properties(index) for index in range(count)]
        return Finding("gpu", True, ", ".join(f"{each.name} ({each.total_memory / 2**30:.0f} GiB)" for each in names))
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", False, "none: training runs on CPUs")
    why = "this torch is a CPU build" if torch.version.cuda is None else "the driver does not answer to this torch's CUDA"
    return Finding(
        "gpu", False, f"nvidia-smi is here, but {why}", "pip install --force-reinstall torch --index-url https://pypi.org/simple"
    )


def _mpi() -> Iterator[Finding]:
    mend = "pip install 'disttrain[mpi]' mpich"
    try:
        from mpi4py import MPI  # also the library, which may be missing where mpi4py is not
    except (ImportError, RuntimeError) as error:
        yield Finding("mpi", False, f"launchers/mpi.py cannot run: {error}", mend)
        return
    library = " ".join(MPI.Get_library_version().split()[:3]).strip("\0")
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    detail = f"mpi4py {version('mpi4py')}, {library}, {mpiexec or 'but no mpiexec'}"
    yield Finding("mpi", mpiexec is not None, detail, "" if mpiexec else "pip install mpich")


def _packages() -> Iterator[Finding]:
    """Extras, by the distributions that they install; they are not imported, which takes seconds."""
    uses = {
        "ray": ("ray", "ray", "launchers/ray_cluster.py"),
        "hf": ("datasets", "hf", "Hugging Face models and data sets"),
        "wandb": ("wandb", "wandb", "recording to Weights & Biases"),
        "tensorboard": ("tensorboard", "tensorboard", "recording to TensorBoard"),
    }
    for name, (package, extra, use) in uses.items():
        try:
            there = importlib.util.find_spec(package) is not None
            yield Finding(
                name, there, f"{package} {version(package)}" if there else f"{use}: no {package}", "" if there else _pip(extra)
            )
        except (PackageNotFoundError, ValueError):
            yield Finding(name, False, f"{use}: {package} is not installed whole", _pip(extra))


def _pip(extra: str) -> str:
    return f"pip install 'disttrain[{extra}]'"


def _emulation() -> Iterator[Finding]:
    from disttrain.emulation.requirements import PACKAGES, check_machine

    missing = sorted({package for tool, package in PACKAGES.items() if shutil.which(tool) is None})
    try:
        check_machine()
        yield Finding("emulation", True, "root, network namespaces, tc")
    except UserError as error:
        root = "" if getattr(os, "geteuid", lambda: 0)() == 0 else "sudo "
        mend = f"{root}apt-get install {' '.join(missing)}" if missing else "sudo -E disttrain emulate ..." if root else ""
        yield Finding("emulation", False, str(error), mend if sys.platform == "linux" else "")


def _space() -> Iterator[Finding]:
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        ok = free >= SHARED_BYTES
        mend = "" if ok else f"mount -o remount,size=1g {SHARED_MEMORY}  # or: docker run --shm-size=1g"
        yield Finding("shared memory", ok, f"{free / 2**30:.1f} GiB free in {SHARED_MEMORY}", mend)
    try:
        with tempfile.TemporaryFile(dir="."):
            pass
    except OSError as error:
        detail = f"{Path.cwd()} cannot be written to ({error.strerror}), where runs/ would be"
        yield Finding("disk", False, detail, "cd to a folder of yours, or set run.directory", True)
        return
    free = shutil.disk_usage(".").free
    yield Finding(
        "disk", free >= DISK_BYTES, f"{free / 2**30:.1f} GiB free in {Path.cwd()}", "" if free >= DISK_BYTES else "df -h ."
    )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _torch, _mpi, _packages, _emulation, _space)
