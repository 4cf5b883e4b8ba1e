"""muP: the best rate of a narrow model is best for a wide one too, and the model is still a plain GPT-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from hfgpt import config
from hfgpt.base.errors import ConfigError
from hfgpt.config import Config
from hfgpt.model import gpt2 as model
from hfgpt.model import optim

CPU = torch.device("cpu")
VOCABULARY = 64


def recipe(width: int, base: int | None, **values: Any) -> Config:
    """Return a recipe of two layers with heads of 16 channels, at any width."""
    shape = {"n_layer": 2, "n_embd": width, "n_head": width // 16, "block_size": 32, "mup_base_width": base}
    return config.build({**shape, "learning_rate": 1e-2, "weight_decay": 0.0, **values}, "test")


def built(c: Config) -> model.LanguageModel:
    torch.manual_seed(0)
    return model.build(c, VOCABULARY, None)


def coordinates(c: Config, steps: int = 4) -> dict[str, float]:
    """Return how far activations move in a few steps, as root mean square: before each block, and the logits."""
    net = built(c)
    optimizer = optim.build(net, c, CPU)
    tokens = torch.randint(VOCABULARY, (8, 33), generator=torch.Generator().manual_seed(1))

    def look() -> dict[str, Tensor]:
        out = net.gpt2(tokens[:, :-1], output_hidden_states=True, use_cache=False)
        return {f"block {i}": h.detach() for i, h in enumerate(out.hidden_states[:-1])} | {
            "logits": out.logits.detach()
        }

    before = look()
    for _ in range(steps):
        (net(tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()).backward()
        optim.set_learning_rate(optimizer, c.learning_rate)
        optimizer.step()
        optimizer.zero_grad()
    return {name: float((h - before[name]).square().mean().sqrt()) for name, h in look().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_coordinate_check(optimizer: str) -> None:
    """In a few steps, activations and logits move equally far at every width; with plain AdamW they diverge."""
    widths = (32, 128, 512)
    moved = [coordinates(recipe(width, 32, optimizer=optimizer)) for width in widths]
    for name in moved[0]:
        sizes = [step[name] for step in moved]
        assert max(sizes) < 1.8 * min(sizes), (name, sizes)
    if optimizer == "adamw":
        plain = [coordinates(recipe(width, None))["logits"] for width in widths]
        assert plain[-1] > 3 * plain[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_at_the_base_width_nothing_changes(optimizer: str) -> None:
    moved = [coordinates(recipe(64, base, optimizer=optimizer)) for base in (None, 64)]
    assert moved[0] == moved[1]


def test_every_rate_follows_the_schedule_in_its_ratio() -> None:
    c = recipe(128, 32, weight_decay=0.2)
    net = built(c)
    optimizer = optim.build(net, c, CPU)
    optim.set_learning_rate(optimizer, 1e-3)
    names = {parameter: name.removeprefix("gpt2.transformer.") for name, parameter in net.named_parameters()}
    rates = {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates.keys() == set(names.values())
    assert rates["wte.weight"] == rates["wpe.weight"] == (1e-3, 0.2)
    assert rates["h.0.ln_1.weight"] == rates["h.1.mlp.c_fc.bias"] == (1e-3, 0.0)
    assert rates["ln_f.weight"] == (pytest.approx(2.5e-4), 0.0)
    for matrix in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        assert rates[f"h.1.{matrix}.weight"] == (pytest.approx(2.5e-4), pytest.approx(0.8))


def test_initial_weights_follow_the_rule() -> None:
    plain, scaled = built(recipe(128, None)).state_dict(), built(recipe(128, 32)).state_dict()
    for name, weight in plain.items():
        factor = 0.25 if "ln_f.weight" in name else 0.5 if weight.dim() == 2 and ".h." in name else 1.0
        torch.testing.assert_close(scaled[name], factor * weight, msg=name)


def test_transformers_loads_it_with_the_same_logits(tmp_path: Path) -> None:
    net = built(recipe(64, 16)).eval()
    net.gpt2.save_pretrained(tmp_path)
    ids = torch.randint(VOCABULARY, (2, 20))
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(ids).logits, net.gpt2(ids).logits)


def test_pretrained_weights_are_not_scaled() -> None:
    with pytest.raises(ConfigError, match="mup_base_width"):
        recipe(64, 32, init_from="gpt2")
