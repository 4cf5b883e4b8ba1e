"""The optimizer, and the learning rate as a pure function of the step.

In:  a Config and a model.
Out: AdamW with two parameter groups; `learning_rate(step, config)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

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


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Matrices and embeddings decay; biases and layer-norm gains, of one dimension, do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def build(model: nn.Module, config: Config, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (new = old - lr * update - lr * weight_decay * old), fused where torch has a kernel for the device."""
    return torch.optim.AdamW(
        parameter_groups(model.parameters(), config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=device.type in ("cpu", "cuda", "xpu", "mps"),
    )
