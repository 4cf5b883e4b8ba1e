"""The optimizer: AdamW, or Muon with AdamW beside it.

In:  a Config and a model.
Out: a torch optimizer with its parameter groups, and a function that sets the learning rate of a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hfgpt.config import Config
from hfgpt.model import width
from hfgpt.model.muon import Muon, block_matrices, fast_dtype


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Return two groups: matrices and embeddings decay; biases and layer-norm gains, of one dimension, do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def build(model: nn.Module, config: Config, device: torch.device) -> torch.optim.Optimizer:
    """Build the recipe's optimizer: AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.

    AdamW (new = old - lr * update - lr * weight_decay * old) is fused if torch has a kernel for the device.
    """
    matrices = block_matrices(model) if config.optimizer == "muon" else []
    apart = {parameter for group in matrices for parameter in group["params"]}
    adamw = torch.optim.AdamW(
        _groups_by_rate([p for p in model.parameters() if p not in apart], width.rate_ratios(model, config), config),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=device.type in ("cpu", "cuda", "xpu", "mps"),
    )
    if config.optimizer == "adamw":
        return adamw
    for group in matrices:
        group |= {
            "lr": config.muon_learning_rate,
            "rate_ratio": config.muon_learning_rate / config.learning_rate,
            "weight_decay": config.weight_decay,
            "momentum": config.muon_momentum,
        }
    return Muon(matrices, adamw, fast_dtype(device))


def _groups_by_rate(
    parameters: list[nn.Parameter], ratios: dict[nn.Parameter, float], config: Config
) -> list[dict[str, object]]:
    """Split AdamW's groups by rate ratio: full-rate groups, then scaled ones with the same decay per step."""
    groups = parameter_groups((p for p in parameters if p not in ratios), config.weight_decay)
    for ratio in sorted({ratios[p] for p in parameters if p in ratios}):
        members = [p for p in parameters if ratios.get(p) == ratio]
        for group in parameter_groups(members, config.weight_decay / ratio):
            groups.append(group | {"lr": config.learning_rate * ratio, "rate_ratio": ratio})
    return groups


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set every group's learning rate: AdamW's, scaled by muP's ratio; Muon's by the ratio of the two peak rates.

    Both thus follow one schedule: warm-up, decay, and min_lr as a share of learning_rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_ratio", 1.0)
