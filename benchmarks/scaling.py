"""The growth of step time and peak memory with each size, compared with theory.

In:  nothing, or `--quick`.
Out: JSON: for each factor its values, the seconds (median, quartiles) and peak bytes of a step at each, and the
     exponents: that of the power law fitted to the measured points, and of the one fitted to the formulas' points.

    OMP_PROC_BIND=true OMP_NUM_THREADS=2 python benchmarks/scaling.py

Formulas: 6N + 12 · n_layer · n_embd · block_size operations per token, and hfgpt/plan/memory.py's peak memory. The
steps are the training loop's own, in one process, alternating between a factor's points. Memory is that of live
tensors.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from table import summary

from hfgpt.plan import memory

BASE = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 128, "batch_size": 4}
VOCABULARY = 1024
FACTORS = {
    "n_layer": [2, 4, 8, 16],
    "n_embd": [128, 256, 512],
    "block_size": [64, 128, 256, 512],
    "batch_size": [2, 4, 8, 16],
    "vocabulary": [1024, 4096, 16384],
}


def exponent(values: Sequence[float], measured: Sequence[float]) -> float:
    """Return b of the power law a · valueᵇ that fits best (least squares of the logarithms)."""
    return float(np.polyfit([math.log(value) for value in values], [math.log(each) for each in measured], 1)[0])


def factor(name: str, values: list[int], rounds: int, iterations: int) -> dict[str, Any]:
    """Measure seconds and bytes of a step against one size."""
    from inside import batch_of, in_turn, prepared
    from peers import Shape

    from hfgpt.plan import probe
    from hfgpt.train.step import train_step

    points = [(Shape(**{**BASE, name: value}), VOCABULARY) for value in values if name != "vocabulary"]
    points = points or [(Shape(**BASE), value) for value in values]
    runs = [prepared(shape, vocabulary, "cpu") for shape, vocabulary in points]
    sides = {
        str(i): lambda run=run, shape=shape: train_step(run, batch_of(run, 0), shape.tokens, 1e-3)
        for i, (run, (shape, _)) in enumerate(zip(runs, points, strict=True))
    }
    seconds = [summary(samples) for samples in in_turn(sides, rounds, iterations, warm=2).values()]
    held = [probe.peak_bytes(run) for run in runs]
    theory = [
        (shape.flops(vocabulary), memory.estimate(shape.config(), vocabulary, "cpu", "float32").peak)
        for shape, vocabulary in points
    ]
    return {
        "factor": name,
        "values": values,
        "seconds": seconds,
        "bytes": held,
        "time_exponent": exponent(values, [each["median"] for each in seconds]),
        "time_theory": exponent(values, [flops for flops, _ in theory]),
        "memory_exponent": exponent(values, held),
        "memory_theory": exponent(values, [peak for _, peak in theory]),
    }


def measure(quick: bool) -> list[dict[str, Any]]:
    """Measure every factor of a single process."""
    rounds, iterations = (1, 2) if quick else (3, 2)
    return [factor(name, values, rounds, iterations) for name, values in FACTORS.items()]


if __name__ == "__main__":
    print(json.dumps(measure("--quick" in sys.argv)))
