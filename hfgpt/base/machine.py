"""What this machine has: its accelerator, cores and memory, and the precision that is fast on its CPU.

In:  what the system says, under the limits of a container.
Out: names and numbers.

No torch at import, so that planning answers at once; only :func:`measured_cpu_peak` loads it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

import psutil


def local_accelerator() -> str | None:
    """The name of this machine's first accelerator, found without loading torch; None if it does not have one.

    Hidden cards (CUDA_VISIBLE_DEVICES empty or -1) do not count. torch may still disagree, where it was built
    without support for the card.
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
    """The first line that a command prints; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def process_began() -> float:
    """When this process was started, as time.monotonic counts."""
    return time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())


def cpu_cores() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def cpu_memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its container's limit where that is less."""
    total: int = psutil.virtual_memory().total
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(limit).read_text().strip() if Path(limit).is_file() else ""
        if text.isdigit():
            return min(total, int(text))
    return total


# The width from which bfloat16 pays on a CPU with instructions for it. Measured on a Zen 4: at a width of 32 a step
# takes 1.27 times as long as in float32, at 64 0.93, at 128 0.7 to 0.8, at 256 0.61.
BFLOAT16_PAYS_FROM = 128

CPUINFO = Path("/proc/cpuinfo")  # where Linux says what a processor can do


def cpu_dtype(n_embd: int) -> str:
    """The faster precision of a model of this width on this CPU: 'bfloat16' or 'float32'.

    bfloat16 where the processor multiplies in it at more than float32's speed: with AMX, or with AMD's AVX512-BF16.
    Intel's AVX512-BF16 is slower than its float32 (a Xeon of family 6, model 207: 165 against 320 GFLOP/s), and
    elsewhere bfloat16 is emulated and ten times slower.
    """
    able = set(_cpu("flags").split())
    fast = "amx_bf16" in able or ("avx512_bf16" in able and _cpu("vendor_id") == "AuthenticAMD")
    return "bfloat16" if fast and n_embd >= BFLOAT16_PAYS_FROM else "float32"


def intel_cpu() -> bool:
    """Whether the processor is Intel's, for which torch's products on a CPU (MKL) are made. Known on Linux only."""
    return _cpu("vendor_id") == "GenuineIntel"


def _cpu(key: str) -> str:
    """What Linux says of the processor; empty elsewhere."""
    try:
        found = re.search(rf"^{key}\s*:(.*)$", CPUINFO.read_text(), flags=re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def measured_cpu_peak(dtype: str = "float32") -> float:
    """FLOP/s that this CPU reaches in a large square matrix product, with torch's threads as they are now.

    Takes 0.2 to 0.4 s. The size grows until a product takes long enough to measure, so that a slow type
    (bfloat16 on a CPU without it) costs no more time than a fast one.
    """
    import torch

    best, size, end = 0.0, 256, time.perf_counter() + 0.2
    while time.perf_counter() < end:
        left = torch.full((size, size), 0.5, dtype=getattr(torch, dtype))  # no draw: a run's generator stays as it is
        left @ left  # the first product of a size also sets the library up
        start = time.perf_counter()
        left @ left
        seconds = time.perf_counter() - start
        best = max(best, 2 * size**3 / seconds)
        if seconds < 0.01 and size < 4096:
            size *= 2
    return best


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h numbers them


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, instead of giving it back to the system.

    Each page that returns costs a page fault: 2,000 in a step of the small recipes, a tenth of its time in bfloat16.
    The process ends up as large as its largest step, as it does on a card. Other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_MMAP_THRESHOLD, 2**30)
