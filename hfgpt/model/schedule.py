"""The learning rate as a pure function of the optimizer step.

In:  a step number, and a resolved Config.
Out: AdamW's learning rate in that step; Muon's is this times the ratio of the two peak rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hfgpt.config import Config

# The remaining share of the distance from the peak to min_lr, by the share of the decay from 0 to 1. "1-sqrt": Hägele
# et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations".
SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
    "1-sqrt": lambda done: 1.0 - math.sqrt(done),
}


def learning_rate(step: int, config: Config) -> float:
    """Return the learning rate of optimizer step `step`, counted from 1 (chapter 4.1, 4.2; nanoGPT's get_lr).

    Step 0 is the state before training: rate 0 if there is a warm-up.
    """
    warmup, decay, peak, low = config.warmup_iters, config.lr_decay_iters, config.learning_rate, config.min_lr
    if warmup is None or decay is None or low is None:
        raise ValueError("the config is not resolved")
    if step < warmup:
        return peak * step / warmup
    if config.lr_schedule == "constant":
        return peak
    start, end = (warmup, decay) if config.lr_schedule == "cosine" else (decay, config.max_iters)
    shape = config.decay_shape if config.lr_schedule == "wsd" else "cosine"
    done = min(1.0, max(0.0, (step - start) / (end - start)))
    return low + SHAPES[shape](done) * (peak - low)
