"""The optimizer: AdamW, or Muon with AdamW beside it; and muP's rule for rates that transfer between widths.

In:  a Config and a model.
Out: a torch optimizer with its parameter groups, and a function that sets the learning rate of a step.

With `mup_base_width`, rates and initial weights follow the rule of Yang et al. 2022, "Tensor Programs V", table 8, for
Adam; for Muon that of Yang, Simon, Bernstein 2023, "A spectral condition for feature learning": its rate is a spectral
norm, and is the same at every width. With m = mup_base_width / n_embd:

    matrices inside the blocks   initial deviation · √m     AdamW's rate · m, decay / m (so that rate · decay stays)
    logits                       · m, by the last layer norm's gain: it begins at m, and its rate is · m
    embeddings, biases, norms    unchanged

Adam moves a gain by its rate whatever the gradient: a gain of m at m times the rate is m times a gain of 1 at the full
rate. The model is therefore a plain GPT-2, and Transformers computes its logits without special handling. The rule
assumes a constant head width: raise n_head with n_embd.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from hfgpt.config import Config
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
        _groups_by_rate([p for p in model.parameters() if p not in apart], rate_ratios(model, config), config),
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


def ratio(config: Config) -> float:
    """Return the tuned width divided by the model's width; 1 without the rule."""
    return 1.0 if config.mup_base_width is None else config.mup_base_width / config.n_embd


@torch.no_grad()
def scale_initial_weights(gpt2: GPT2LMHeadModel, config: Config) -> None:
    """Scale GPT-2's initial weights by the rule, in place."""
    if (m := ratio(config)) == 1.0:
        return
    for module in gpt2.modules():
        if isinstance(module, Conv1D):
            module.weight.mul_(m**0.5)
    gpt2.transformer.ln_f.weight.mul_(m)


def rate_ratios(model: nn.Module, config: Config) -> dict[nn.Parameter, float]:
    """Return the factor of AdamW's rate for each parameter that the rule scales."""
    if (m := ratio(config)) == 1.0:
        return {}
    plain: Any = model.gpt2
    slowed = [module.weight for module in plain.modules() if isinstance(module, Conv1D)]
    return dict.fromkeys([*slowed, *plain.transformer.ln_f.parameters()], m)
