"""AdamW decays matrices alone, by its formula, at the step's learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfgpt import config
from hfgpt.config import Config
from hfgpt.model import gpt2 as model
from hfgpt.model import optim


def made(**values: Any) -> Config:
    return config.build(values, "test")


def gpt2() -> model.LanguageModel:
    return model.build(made(n_layer=1, n_head=2, n_embd=8, block_size=4), vocab_size=11, eos_token_id=None)


def test_the_members_of_both_groups_for_gpt2() -> None:
    network = gpt2()
    names = {parameter: name for name, parameter in network.named_parameters()}
    decay, rest = optim.parameter_groups(network.parameters(), 0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert [names[p] for p in decay["params"]] == [
        "gpt2.transformer.wte.weight",
        "gpt2.transformer.wpe.weight",
        "gpt2.transformer.h.0.attn.c_attn.weight",
        "gpt2.transformer.h.0.attn.c_proj.weight",
        "gpt2.transformer.h.0.mlp.c_fc.weight",
        "gpt2.transformer.h.0.mlp.c_proj.weight",
    ]
    assert [names[p] for p in rest["params"]] == [
        "gpt2.transformer.h.0.ln_1.weight",
        "gpt2.transformer.h.0.ln_1.bias",
        "gpt2.transformer.h.0.attn.c_attn.bias",
        "gpt2.transformer.h.0.attn.c_proj.bias",
        "gpt2.transformer.h.0.ln_2.weight",
        "gpt2.transformer.h.0.ln_2.bias",
        "gpt2.transformer.h.0.mlp.c_fc.bias",
        "gpt2.transformer.h.0.mlp.c_proj.bias",
        "gpt2.transformer.ln_f.weight",
        "gpt2.transformer.ln_f.bias",
    ]


def test_frozen_parameters_are_left_alone() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    decay, rest = optim.parameter_groups(layer.parameters(), 0.1)
    assert decay["params"] == []
    assert len(rest["params"]) == 1


def test_one_step_of_adamw_by_hand() -> None:
    """new = old - lr * update - lr * weight_decay * old, with decay for matrices only (Loshchilov and Hutter)."""
    layer = nn.Linear(3, 2).double()
    c = made(learning_rate=0.01, weight_decay=0.5, beta1=0.8, beta2=0.9)
    optimizer = optim.build(layer, c, torch.device("cpu"))
    expected = {}
    for name, decay in (("weight", 0.5), ("bias", 0.0)):
        parameter = getattr(layer, name)
        gradient = torch.randn_like(parameter)
        old, parameter.grad = parameter.detach().clone(), gradient
        first, second = 0.2 * gradient, 0.1 * gradient**2
        update = (first / (1 - 0.8)) / ((second / (1 - 0.9)).sqrt() + 1e-8)
        expected[name] = old - 0.01 * update - 0.01 * decay * old
    optimizer.step()
    for name, value in expected.items():
        torch.testing.assert_close(getattr(layer, name).detach(), value)


def test_the_rate_that_the_loop_sets_is_the_rate_of_the_step() -> None:
    layer = nn.Linear(1, 1)
    optimizer = optim.build(layer, made(weight_decay=0.0), torch.device("cpu"))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = layer.weight.item()
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert layer.weight.item() == before
