"""The head and its loss: ours against torch's own linear_cross_entropy, forward and backward, alternating.

    OMP_PROC_BIND=true OMP_NUM_THREADS=2 python benchmarks/head.py

In:  nothing.
Out: one line per shape and precision: the ratio of torch's time to ours, and the difference of the losses. Below 1,
     torch's has become faster, and hfgpt/model/head.py can be deleted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgpt.model.head import linear_cross_entropy

SHAPES = {"GPT-2's vocabulary": (2048, 768, 50257), "characters": (4096, 384, 330)}  # tokens, n_embd, vocabulary
ROUNDS = 7
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def torchs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute torch's own loss, in chunks."""
    options = F.LinearCrossEntropyOptions() if hasattr(F, "LinearCrossEntropyOptions") else None
    return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", ignore_index=-100, options=options)


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute hfgpt's loss."""
    return linear_cross_entropy(hidden, weight, targets, -100)


def seconds(loss: Loss, shape: tuple[int, int, int], dtype: str) -> tuple[float, float]:
    """Return the seconds of a forward and a backward pass, and the loss."""
    tokens, width, vocabulary = shape
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width).mul_(0.02).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))
    began = time.perf_counter()
    with torch.autocast("cpu", dtype=getattr(torch, dtype), enabled=dtype != "float32"):
        value = loss(hidden, weight, targets)
    value.backward()
    return time.perf_counter() - began, float(value.detach())


def main() -> None:
    for name, shape in SHAPES.items():
        for dtype in ("float32", "bfloat16"):
            ratios, gap = [], 0.0
            for number in range(ROUNDS + 1):
                (own, value), (other, expected) = seconds(ours, shape, dtype), seconds(torchs, shape, dtype)
                gap = max(gap, abs(value - expected) / expected)
                if number:  # the first round also warms up
                    ratios.append(other / own)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{name}, {dtype}: torch's takes {statistics.median(ratios):.2f} x ({spread}), {gap:.1e} apart")


if __name__ == "__main__":
    main()
