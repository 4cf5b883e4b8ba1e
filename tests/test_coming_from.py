"""docs/en/coming-from.md: its names of hfgpt exist, and the other projects' names are as complete as can be checked."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from conftest import ROOT

from hfgpt import config
from hfgpt.config import RENAMED, Config, nanogpt

SECTIONS = re.split(r"^## ", (ROOT / "docs" / "en" / "coming-from.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[
    1:
]
FLAGS = {"--resume"}  # of scripts/train.py
# The settings of nanoGPT's train.py, in its order.
NANOGPT = [
    "out_dir",
    "eval_interval",
    "log_interval",
    "eval_iters",
    "eval_only",
    "always_save_checkpoint",
    "init_from",
    "wandb_log",
    "wandb_project",
    "wandb_run_name",
    "dataset",
    "gradient_accumulation_steps",
    "batch_size",
    "block_size",
    "n_layer",
    "n_head",
    "n_embd",
    "dropout",
    "bias",
    "learning_rate",
    "max_iters",
    "weight_decay",
    "beta1",
    "beta2",
    "grad_clip",
    "decay_lr",
    "warmup_iters",
    "lr_decay_iters",
    "min_lr",
    "backend",
    "device",
    "dtype",
    "compile",
]


def rows(section: str) -> list[tuple[list[str], list[str]]]:
    """Return (their names, ours) of each line of a section's table."""
    cells = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]+)`", theirs), re.findall(r"`([^`]+)`", ours)) for theirs, ours in cells]


def theirs(title: str) -> set[str]:
    (section,) = [section for section in SECTIONS if section.startswith(title)]
    return {name for names, _ in rows(section) for name in names}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_our_names_are_parameters_or_flags(section: str) -> None:
    assert rows(section)
    ours = {name for _, names in rows(section) for name in names}
    commands = {name for name in ours if name.startswith("accelerate launch")}
    assert ours - commands <= set(Config.model_fields) | FLAGS


def test_the_trainers_names_are_the_trainers() -> None:
    from transformers import TrainingArguments

    assert theirs("The Trainer") <= {field.name for field in dataclasses.fields(TrainingArguments)}


def test_every_name_of_nanogpt_is_listed() -> None:
    assert theirs("nanoGPT") == set(NANOGPT)
    assert {*RENAMED, *nanogpt.DEFAULTS, *nanogpt.LEFT_OUT} <= set(NANOGPT)


def test_a_file_of_nanogpt_that_names_no_dataset_does_not_train_on_another_text(tmp_path: Path) -> None:
    """Its config/train_gpt2.py relies on the default, openwebtext."""
    path = tmp_path / "config" / "train_gpt2.py"
    path.parent.mkdir()
    path.write_text("wandb_log = False\nbatch_size = 12\nmax_iters = 600000\n")
    resolved = config.load(path)
    assert (resolved.dataset, resolved.tokenizer) == (str(tmp_path / "data" / "openwebtext"), "gpt2")
    assert resolved.gradient_accumulation_steps == 40
    assert config.load(path, ["--dataset=shakespeare"]).dataset == "shakespeare"
    path.write_text("batch_size = 12\nmax_iters = 600\n")  # the chapter's
    assert config.load(path).dataset == "shakespeare"
