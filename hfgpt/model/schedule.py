"""The learning rate of a step."""

from __future__ import annotations

import math

from hfgpt.config import Config


def learning_rate(step: int, config: Config) -> float:
    """The learning rate of optimizer step `step`, the first being step 1 (chapter 4.1, 4.2; nanoGPT's get_lr).

    Step 0 is the state before training: rate 0 where there is a warm-up.
    """
    warmup, decay, peak, low = config.warmup_iters, config.lr_decay_iters, config.learning_rate, config.min_lr
    if warmup is None or decay is None or low is None:
        raise ValueError("the config is not resolved")
    if step < warmup:
        return peak * step / warmup
    if config.lr_schedule == "constant":
        return peak
    start, end = (warmup, decay) if config.lr_schedule == "cosine" else (decay, config.max_iters)
    progress = min(1.0, max(0.0, (step - start) / (end - start)))
    return low + 0.5 * (1.0 + math.cos(math.pi * progress)) * (peak - low)
