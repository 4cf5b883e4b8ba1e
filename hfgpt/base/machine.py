"""This machine's accelerator, cores and memory, and the faster precision on its CPU.

In:  what the operating system reports, within a container's limits.
Out: names and numbers. Only :func:`measured_cpu_peak` loads torch, so that planning answers at once.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil


def local_accelerator() -> str | None:
    """Return the name of this machine's first accelerator, without loading torch; None if there is not one.

    Hidden cards (CUDA_VISIBLE_DEVICES empty or -1) do not count. torch may disagree if it was built without support for
    the card.
    """
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return None
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        if model := re.search(r"^Model:\s*(.+)$", information.read_text(), flags=re.MULTILINE):
            return model[1].strip()
    if shutil.which("nvidia-smi"):
        return _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return None


def _output(command: list[str]) -> str | None:
    """Return the first line that a command prints; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def began(process: int) -> float | None:
    """Return when a process of this machine began, by a clock that nobody can set; None if it has ended.

    Linux counts it from its own start, in seconds. psutil gives it from 1970, which whoever sets the clock moves.
    """
    try:
        if sys.platform == "linux":
            state, *figures = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            return None if state == "Z" else int(figures[18]) / os.sysconf("SC_CLK_TCK")
        info = psutil.Process(process)
        return None if info.status() == psutil.STATUS_ZOMBIE else float(info.create_time())
    except (OSError, psutil.Error):
        return None


def is_hidden(process: int) -> bool:
    """Whether another user's process runs that this user does not see, since /proc is mounted with hidepid."""
    if sys.platform != "linux" or began(process) is not None:
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def process_began() -> float:
    """Return when this process started, on the clock of time.monotonic."""
    return time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())


def cpu_cores() -> int:
    """Return how many physical cores this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def cpu_memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's limit if that is less."""
    total: int = psutil.virtual_memory().total
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(limit).read_text().strip() if Path(limit).is_file() else ""
        if text.isdigit():
            return min(total, int(text))
    return total


# The width from which bfloat16 pays on a CPU with instructions for it. Measured on a Zen 4, a step in bfloat16 takes
# this multiple of its float32 time: width 32 1.27, 64 0.93, 128 0.7 to 0.8, 256 0.61.
BFLOAT16_PAYS_FROM = 128

CPUINFO = Path("/proc/cpuinfo")  # where Linux lists a processor's features


def cpu_dtype(n_embd: int) -> str:
    """Return the faster precision for a model of this width on this CPU: 'bfloat16' or 'float32'.

    bfloat16 if the processor multiplies faster in it than in float32: with AMX, or with AMD's AVX512-BF16.
    Intel's AVX512-BF16 is slower than its float32 (a Xeon of family 6, model 207: 165 against 320 GFLOP/s), and
    elsewhere bfloat16 is emulated and ten times slower.
    """
    able = set(_cpu("flags").split())
    fast = "amx_bf16" in able or ("avx512_bf16" in able and _cpu("vendor_id") == "AuthenticAMD")
    return "bfloat16" if fast and n_embd >= BFLOAT16_PAYS_FROM else "float32"


def intel_cpu() -> bool:
    """Whether the processor is Intel's, for which torch's CPU matrix products (MKL) are tuned. Known on Linux only."""
    return _cpu("vendor_id") == "GenuineIntel"


def _cpu(key: str) -> str:
    """Return the processor's fields as Linux reports them; empty on other systems."""
    try:
        field = re.search(rf"^{key}\s*:(.*)$", CPUINFO.read_text(), flags=re.MULTILINE)
    except OSError:
        return ""
    return field[1].strip() if field else ""


def measured_cpu_peak(dtype: str = "float32") -> float:
    """Measure this CPU's FLOP/s in a large square matrix product, with torch's current threads.

    Takes 0.2 to 0.4 s. The size grows until a product takes long enough to measure, so a slow type (bfloat16 on a CPU
    without it) costs no more time than a fast one.
    """
    import torch

    best, size, end = 0.0, 256, time.perf_counter() + 0.2
    while time.perf_counter() < end:
        left = torch.full((size, size), 0.5, dtype=getattr(torch, dtype))  # no draw from the run's generator
        left @ left  # warm-up: the first product of a size initializes the library
        start = time.perf_counter()
        left @ left
        seconds = time.perf_counter() - start
        best = max(best, 2 * size**3 / seconds)
        if seconds < 0.01 and size < 4096:
            size *= 2
    return best


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep the memory that a step frees for the next one, instead of returning it to the system.

    Each returned page later costs a page fault: 2,000 in a step of the small recipes, a tenth of its time in bfloat16.
    The process grows as large as its largest step, as on a card. Other C libraries do not have this setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_MMAP_THRESHOLD, 2**30)
