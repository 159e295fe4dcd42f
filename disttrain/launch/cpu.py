"""Processors that promise what they do not keep.

Some virtual machines advertise Intel's AMX but hide its palettes (CPUID leaf 0x1D is empty). oneDNN, which torch's bf16 matrix
products on CPUs use, then configures no tiles and dies by SIGILL. A child process tries one such product first; if it is
killed, oneDNN is told to do without AMX.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import sys
from pathlib import Path

import torch


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
