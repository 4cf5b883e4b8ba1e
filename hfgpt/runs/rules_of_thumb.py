"""Rules of thumb of the chapter that both a plan and a diagnosis follow.

In:  a recipe, or the number of parameters.
Out: values to set.
"""

from __future__ import annotations

from typing import Any

from hfgpt.config import Config


def learning_rate(parameters: int, pretrained: bool = False) -> float:
    """The learning rate by the number of parameters; 1e-4 for a pretrained model (3.1)."""
    if pretrained:
        return 1e-4
    return 1e-3 if parameters < 50e6 else 6e-4 if parameters <= 500e6 else 3e-4


def smaller_model(config: Config) -> dict[str, Any]:
    """Two thirds of the layers and of the width (6.1, 6.3: from 6 layers of 384 to 4 of 256).

    The heads keep their width if there is more than one. A pretrained model has its shape: nothing to set.
    """
    if config.pretrained:
        return {}
    layers, heads = max(1, round(config.n_layer * 2 / 3)), max(1, round(config.n_head * 2 / 3))
    head = config.n_embd // config.n_head if heads < config.n_head else max(1, round(config.n_embd / heads * 2 / 3))
    if (layers, heads * head) == (config.n_layer, config.n_embd):
        return {}
    return {"n_layer": layers, "n_head": heads, "n_embd": heads * head}
