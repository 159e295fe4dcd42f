"""What a CPU needs before it trains: memory that is not handed back after every step, results that do not depend on where tensors
lie in it, and matrix products that do not crash.

Some virtual machines advertise Intel's AMX but hide its palettes (CPUID leaf 0x1D is empty). oneDNN, which torch's bf16 matrix
products on CPUs use, then configures no tiles and dies by SIGILL. A child process tries one such product first; if it is
killed, oneDNN is told to do without AMX.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import os
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step, instead of mapping it anew and touching every page; Linux only.

    Tensors of up to 32 MiB come from the heap, and the heap does not shrink. Both are needed: either alone switches off
    glibc's own adaptation.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 32 << 20)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def round_alike_at_any_address() -> None:
    """Let MKL give the same bits wherever in memory a matrix lies; to be called before the process's first product.

    On AMD's processors products of few rows with a transposed matrix (a linear layer on a small batch), and with a vector,
    otherwise depend on its address modulo 64, so a resumed run, or a simulated worker, differs in the last bit. AUTO is the
    processor's own fastest path all the same: on an EPYC 9004 products took as long as without, to within 3 %.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")


def avoid_broken_amx() -> None:
    """Keep oneDNN off AMX where that traps; to be called before the process's first matrix product in bf16."""
    if "ONEDNN_MAX_CPU_ISA" not in os.environ and amx_traps():
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_FP16"  # the best without AMX


@functools.cache
def amx_traps() -> bool:
    """Whether this processor advertises AMX and kills a process that multiplies bf16 matrices."""
    if sys.platform != "linux" or "amx_tile" not in Path("/proc/cpuinfo").read_text():
        return False
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # the crash is the answer, not news
        torch.set_num_threads(1)
        torch.ones(64, 64, dtype=torch.bfloat16).mm(torch.ones(64, 64, dtype=torch.bfloat16))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
