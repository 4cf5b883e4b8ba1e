"""What this machine can reach: large matrix products by number type, and copies in memory.

In:  a device.
Out: JSON: ``gflops`` by type, of square products, the best of several sizes; ``memory_gbps``, bytes read and written.

    OMP_PROC_BIND=true OMP_NUM_THREADS=2 python benchmarks/ceiling.py cpu
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

SIZES = (256, 512, 1024, 2048, 4096, 8192)
LONG_ENOUGH = 0.3  # seconds of a product, beyond which a larger one is not tried
COPIED = 256 << 20  # bytes, far more than a cache holds


def best_seconds(action: Callable[[], object], device: str, times: int = 3) -> float:
    """The shortest of several times, after one that does not count."""
    import torch

    taken = []
    for _ in range(times + 1):
        began = time.perf_counter()
        action()
        if device != "cpu":
            torch.accelerator.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def gflops(dtype: str, device: str) -> float:
    """10⁹ floating-point operations a second in square matrix products of this type."""
    import torch

    best = 0.0
    for size in SIZES:
        left = torch.full((size, size), 0.5, dtype=getattr(torch, dtype), device=device)
        seconds = best_seconds(lambda left=left: left @ left, device)
        best = max(best, 2 * size**3 / seconds / 1e9)
        if 8 * seconds > LONG_ENOUGH:
            break
    return best


def memory_gbps(device: str) -> float:
    """10⁹ bytes a second, read and written, while one array is copied onto another."""
    import torch

    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / best_seconds(lambda: target.copy_(source), device) / 1e9


def measure(device: str) -> dict[str, Any]:
    """Everything above. On a card float32 is as training uses it, with TF32 products."""
    import torch

    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    types = ("float32", "bfloat16", "float16") if device == "cuda" else ("float32", "bfloat16")
    return {
        "gflops": {dtype: round(gflops(dtype, device), 2) for dtype in types},
        "memory_gbps": round(memory_gbps(device), 2),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1] if len(sys.argv) > 1 else "cpu")))
