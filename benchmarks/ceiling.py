"""The peak speed of this machine: large matrix products by number type, and memory copies.

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
LONG_ENOUGH = 0.3  # seconds; a product that would take longer is not tried
COPIED = 256 << 20  # bytes, far more than fits in a cache


def best_seconds(action: Callable[[], object], device: str, times: int = 3) -> float:
    """Return the shortest of several times, after a warm-up."""
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
    """Return the GFLOP/s of square matrix products of this type."""
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
    """Return the GB/s, read and written, of copying one array onto another."""
    import torch

    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / best_seconds(lambda: target.copy_(source), device) / 1e9


def measure(device: str) -> dict[str, Any]:
    """Measure everything above. On a card float32 uses TF32 products, as in training."""
    import torch

    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    types = ("float32", "bfloat16", "float16") if device == "cuda" else ("float32", "bfloat16")
    return {
        "gflops": {dtype: round(gflops(dtype, device), 2) for dtype in types},
        "memory_gbps": round(memory_gbps(device), 2),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1] if len(sys.argv) > 1 else "cpu")))
