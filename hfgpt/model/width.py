"""Learning rates that transfer between widths: muP's rule (`mup_base_width`).

In:  a fresh GPT2LMHeadModel, or its optimizer's groups, and the width at which the rates were tuned.
Out: initial weights and rates with which a wider model's activations change as much in a step as the tuned one's.

The rule is that of Yang et al. 2022, "Tensor Programs V", table 8, for Adam; for Muon that of Yang, Simon, Bernstein
2023, "A spectral condition for feature learning": its rate is a spectral norm, and is the same at every width. With m =
mup_base_width / n_embd:

    matrices inside the blocks   initial deviation · √m     AdamW's rate · m, decay / m (so that rate · decay stays)
    logits                       · m, by the last layer norm's gain: it begins at m, and its rate is · m
    embeddings, biases, norms    unchanged

Adam moves a gain by its rate whatever the gradient: a gain of m at m times the rate is m times a gain of 1 at the full
rate. The model is therefore a plain GPT-2, and Transformers computes its logits without special handling. The rule
assumes a constant head width: raise n_head with n_embd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from hfgpt.config import Config


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
