"""The learning rate is the chapter's and nanoGPT's at every step; AdamW decays what it should, by its formula."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hfgpt import config, model, optim
from hfgpt.config import Config


def made(**values: Any) -> Config:
    return config.build(values, "test")


PRODUCTION = {"learning_rate": 6e-4, "max_iters": 600_000, "warmup_iters": 2000, "min_lr": 6e-5}


@pytest.mark.parametrize("schedule", ["cosine", "hold_cosine", "constant"])
@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (500, 1.5e-4), (1000, 3e-4), (2000, 6e-4)])
def test_the_chapters_warm_up(step: int, rate: float, schedule: str) -> None:
    assert optim.learning_rate(step, made(lr_schedule=schedule, **PRODUCTION)) == pytest.approx(rate, abs=1e-18)


def test_cosine_falls_from_the_warm_up_to_lr_decay_iters_and_stays() -> None:
    c = made(learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110, max_iters=200)
    expected = {10: 1.0, 35: 0.1 + 0.45 * (1 + math.cos(math.pi / 4)), 60: 0.55, 110: 0.1, 111: 0.1, 200: 0.1}
    assert {step: optim.learning_rate(step, c) for step in expected} == pytest.approx(expected)


def test_hold_cosine_holds_until_lr_decay_iters_and_falls_to_the_end() -> None:
    c = made(
        lr_schedule="hold_cosine", learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=100, max_iters=200
    )
    expected = {10: 1.0, 60: 1.0, 100: 1.0, 150: 0.55, 200: 0.1}
    assert {step: optim.learning_rate(step, c) for step in expected} == pytest.approx(expected)


def test_constant_holds() -> None:
    c = made(lr_schedule="constant", learning_rate=1.0, warmup_iters=4, max_iters=100)
    assert [optim.learning_rate(step, c) for step in (2, 4, 5, 100)] == [0.5, 1.0, 1.0, 1.0]


def test_without_a_warm_up_the_first_step_has_the_full_rate() -> None:
    for schedule in ("cosine", "hold_cosine", "constant"):
        c = made(lr_schedule=schedule, learning_rate=1.0, warmup_iters=0, max_iters=10)
        assert optim.learning_rate(0, c) == 1.0


@pytest.mark.parametrize("recipe", ["quick_experiment", "learning", "standard", "production", "shakespeare_char_cpu"])
def test_every_recipe_reaches_its_peak_and_ends_at_min_lr(recipe: str) -> None:
    c = config.load(ROOT / "recipes" / f"{recipe}.yaml")
    assert c.warmup_iters is not None
    assert optim.learning_rate(c.warmup_iters, c) == c.learning_rate
    assert optim.learning_rate(c.max_iters, c) == pytest.approx(c.min_lr)


@given(
    st.sampled_from(["cosine", "hold_cosine", "constant"]),
    st.integers(2, 60),
    st.data(),
)
def test_it_rises_then_never_rises_again_and_stays_in_its_bounds(schedule: str, max_iters: int, data: Any) -> None:
    warmup = data.draw(st.integers(0, max_iters - 2))
    decay = data.draw(st.integers(warmup + 1, max_iters - 1))
    c = made(
        lr_schedule=schedule,
        max_iters=max_iters,
        warmup_iters=warmup,
        lr_decay_iters=decay,
        learning_rate=1.0,
        min_lr=0.25,
    )
    rates = [optim.learning_rate(step, c) for step in range(max_iters + 1)]
    assert max(rates) == rates[warmup] == 1.0
    assert all(a < b for a, b in pairwise(rates[: warmup + 1]))
    assert all(a >= b >= 0.25 for a, b in pairwise(rates[warmup:]))
    assert rates[-1] == (1.0 if schedule == "constant" else pytest.approx(0.25))


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
    """new = old - lr * update - lr * weight_decay * old, and the decay on matrices alone (Loshchilov and Hutter)."""
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
