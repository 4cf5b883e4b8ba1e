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
# An operation belongs to the first group whose pattern its name contains. "attention" includes dropout inside a fused
# kernel; softmax and the products of unfused attention (bmm) are attention too.
GROUPS = (
    ("optimizer", r"adam|optimizer|_foreach|muon|clip_grad|linalg_vector_norm"),
    ("attention", r"attention|softmax(?!.*nll)|\bbmm\b|baddbmm"),
    ("matrix products", r"\b(addmm|mm|matmul|linear|addmv|mv)\b|mkldnn|onednn"),
)


def group_of(operation: str) -> str:
    """Return the group of a torch operation, such as aten::addmm; an unknown one is elementwise."""
    name = operation.lower().replace("aten::", " ")
    return next((group for group, pattern in GROUPS if re.search(pattern, name)), "elementwise")


def shares(own_microseconds: dict[str, float], data: float, whole: float) -> dict[str, float]:
    """Return the shares of the groups in `whole`, which add up to 1.

    Args:
        own_microseconds: of each operation, without its children's time.
        data: microseconds of getting the batches, including the operations in it.
        whole: microseconds of all steps.
    """
    sums = dict.fromkeys(("matrix products", "attention", "elementwise", "optimizer"), 0.0)
    for operation, own in own_microseconds.items():
        sums[group_of(operation)] += own
    sums |= {"data": data, "Python": max(0.0, whole - data - sum(sums.values()))}
    return {group: value / sum(sums.values()) for group, value in sums.items()}


def measure(shape: Shape, dtype: str, vocabulary: int = 65, steps: int = 5) -> dict[str, Any]:
    """Return shares and milliseconds of the training loop's step, of this shape on the CPU."""
    import torch

    from hfgpt.train.step import train_step

    run = prepared(shape, vocabulary, "cpu", dtype=dtype)

    def step(number: int) -> float:
        """Run one step; return the seconds that its batch took."""
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
    # The profiler's records lie between the tensors. Tensors that no longer fit get new pages, whose page faults would
    # count as elementwise work. In the third round there is space for all.
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
