"""The bottlenecks of a training step: shares of matrix products, attention, elementwise work, optimizer, data, Python.

In:  a shape's name, and a number type.
Out: JSON: the share of each group in the time of a step, by torch's profiler; the milliseconds of an unprofiled step.

    OMP_PROC_BIND=true OMP_NUM_THREADS=2 python benchmarks/profile_step.py standard bfloat16

Each operation counts only its own time. The time of a step outside any operation is Python's.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from typing import Any

from inside import batch_of, prepared
from peers import SMALL, STANDARD, Shape

SHAPES = {"small": SMALL, "standard": STANDARD}
# The first group whose pattern is found in an operation's name takes it. "attention" includes the dropout inside it,
# where a fused kernel does that; softmax and the products of unfused attention (bmm) are attention as well.
GROUPS = (
    ("optimizer", r"adam|optimizer|_foreach|muon|clip_grad|linalg_vector_norm"),
    ("attention", r"attention|softmax(?!.*nll)|\bbmm\b|baddbmm"),
    ("matrix products", r"\b(addmm|mm|matmul|linear|addmv|mv)\b|mkldnn|onednn"),
)


def group_of(operation: str) -> str:
    """The group of an operation of torch, such as aten::addmm; what has no name of its own is elementwise."""
    name = operation.lower().replace("aten::", " ")
    return next((group for group, pattern in GROUPS if re.search(pattern, name)), "elementwise")


def shares(own_microseconds: dict[str, float], data: float, whole: float) -> dict[str, float]:
    """Shares of the groups in `whole`; adding up to 1.

    Args:
        own_microseconds: of each operation, its children's time left out.
        data: microseconds of getting the batches, operations in it included.
        whole: microseconds of all steps.
    """
    sums = dict.fromkeys(("matrix products", "attention", "elementwise", "optimizer"), 0.0)
    for operation, own in own_microseconds.items():
        sums[group_of(operation)] += own
    sums |= {"data": data, "Python": max(0.0, whole - data - sum(sums.values()))}
    return {group: value / sum(sums.values()) for group, value in sums.items()}


def measure(shape: Shape, dtype: str, vocabulary: int = 65, steps: int = 5) -> dict[str, Any]:
    """Shares and milliseconds of the training loop's step, of this shape on the CPU."""
    import torch

    from hfgpt.train.step import train_step

    run = prepared(shape, vocabulary, "cpu", dtype=dtype)

    def step(number: int) -> float:
        """One step; the seconds that its batch took."""
        began = time.perf_counter()
        batch = batch_of(run, number)
        taken = time.perf_counter() - began
        train_step(run, batch, shape.tokens, 1e-3)
        return taken

    times = list[float]()
    for number in range(steps + 1):
        began = time.perf_counter()
        step(number)
        times.append(time.perf_counter() - began)
    # What the profiler notes lies between the tensors, and where they find no place any more they get new pages, whose
    # faults would count as elementwise work. The third time there is a place for all.
    for _ in range(3):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            began = time.perf_counter()
            data = sum(step(number) for number in range(steps))
            whole = time.perf_counter() - began
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return {
        "milliseconds": statistics.median(times[1:]) * 1e3,
        "shares": shares(own, data * 1e6, whole * 1e6),
    }


if __name__ == "__main__":
    print(json.dumps(measure(SHAPES[sys.argv[1]], sys.argv[2])))
