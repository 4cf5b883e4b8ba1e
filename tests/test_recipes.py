"""Each recipe loads and states its command, and the chapter's four recipes have the chapter's values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from hfgpt import config
from hfgpt.base import language
from hfgpt.commands.recipes import purpose

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

CHAPTER: dict[str, dict[str, Any]] = {
    "quick_experiment": {  # 7.1
        "batch_size": 16,
        "block_size": 64,
        "gradient_accumulation_steps": 1,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 128,
        "dropout": 0.0,
        "learning_rate": 1e-3,
        "max_iters": 500,
        "eval_interval": 100,
        "eval_iters": 20,
    },
    "learning": {  # 7.2
        "batch_size": 32,
        "block_size": 128,
        "gradient_accumulation_steps": 2,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 256,
        "dropout": 0.1,
        "learning_rate": 1e-3,
        "max_iters": 3000,
        "warmup_iters": 100,
        "eval_interval": 250,
    },
    "standard": {  # 7.3; weight_decay and grad_clip from 5.1
        "batch_size": 64,
        "block_size": 256,
        "gradient_accumulation_steps": 1,
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "dropout": 0.2,
        "learning_rate": 1e-3,
        "max_iters": 5000,
        "warmup_iters": 100,
        "lr_decay_iters": 5000,
        "min_lr": 1e-4,
        "weight_decay": 0.1,
        "grad_clip": 1.0,
    },
    "production": {  # 7.4
        "batch_size": 12,
        "block_size": 1024,
        "gradient_accumulation_steps": 40,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "dropout": 0.0,
        "learning_rate": 6e-4,
        "max_iters": 600_000,
        "warmup_iters": 2000,
        "lr_decay_iters": 600_000,
        "min_lr": 6e-5,
    },
}

# The chapter's recipes do not set the text, the evaluations and what speeds up a step.
OPEN = {"dataset", "dataset_config", "streaming", "tokenizer", "eval_interval", "eval_iters", "log_interval", "compile"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_names_its_launch(path: Path) -> None:
    config.load(path)
    head = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    assert head, "it opens with what it is for"
    assert f"python scripts/train.py recipes/{path.name}" in head[0] or re.search(
        rf"accelerate launch --config_file accelerate_configs/\w+\.yaml scripts/train.py recipes/{path.name}", head[0]
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_leaves_the_machine_and_the_user_their_choices(path: Path) -> None:
    said = config.read_recipe(path).keys()
    assert not said & {"device", "dtype", "cpu_threads", "num_proc", "out_dir", "seed", "report_to"}


@pytest.mark.parametrize("name", CHAPTER)
def test_the_chapters_recipes_hold_its_values_and_add_none(name: str) -> None:
    path = ROOT / "recipes" / f"{name}.yaml"
    said, made = config.read_recipe(path), config.load(path)
    assert {key: getattr(made, key) for key in CHAPTER[name]} == CHAPTER[name]
    assert CHAPTER[name].keys() <= said.keys(), "written down, not left to a default"
    assert said.keys() - CHAPTER[name].keys() <= OPEN


def test_nanogpts_cpu_run() -> None:
    """nanoGPT's README trains this "on a macbook", here without its flags for the machine."""
    made = config.load(ROOT / "recipes" / "shakespeare_char_cpu.yaml")
    expected = {
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "block_size": 64,
        "batch_size": 12,
        "gradient_accumulation_steps": 1,
        "max_iters": 2000,
        "lr_decay_iters": 2000,
        "learning_rate": 1e-3,
        "min_lr": 1e-4,
        "warmup_iters": 100,
        "beta2": 0.99,
        "dropout": 0.0,
        "eval_iters": 20,
        "lr_schedule": "cosine",
        "tokenizer": "char",
    }
    assert {key: getattr(made, key) for key in expected} == expected


def test_finetuning_is_gentle_and_keeps_the_models_tokenizer() -> None:
    made = config.load(ROOT / "recipes" / "finetune.yaml")
    assert made.pretrained
    assert made.tokenizer == made.init_from
    assert made.learning_rate == 1e-4  # chapter 3.1
    assert config.load(ROOT / "recipes" / "finetune.yaml", ["--init_from=out/learning"]).tokenizer == "out/learning"


@pytest.mark.parametrize("name", config.shipped_recipes())
def test_a_recipe_says_in_both_languages_what_it_is_for(name: str) -> None:
    path = config.shipped_recipes()[name]
    english = purpose(path)
    with language.using("zh"):
        chinese = purpose(path)
    assert english.isascii() or "→" in english
    assert re.search(r"[\u4e00-\u9fff]{4}", chinese)
