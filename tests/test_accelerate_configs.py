"""Each Accelerate configuration says how it is launched, and starts our training when it is launched so."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
EXPECTED = {"cpu", "single_gpu", "multi_gpu", "fsdp2", "deepspeed_zero2", "multi_node", "multi_cpu"}

# What the recipe says: an Accelerate configuration that said it too could only agree or be overruled.
THE_RECIPES = {"mixed_precision", "gradient_accumulation_steps", "gradient_clipping", "dynamo_backend"}


def test_all_of_them_are_here() -> None:
    assert {path.stem for path in CONFIGS} == EXPECTED


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_precision_and_accumulation_are_left_to_the_recipe(path: Path) -> None:
    said = yaml.safe_load(path.read_text())
    inner = {**said.get("deepspeed_config", {}), **said.get("fsdp_config", {})}
    assert not THE_RECIPES & (said.keys() | inner.keys())


def commands(path: Path) -> list[list[str]]:
    """The words behind `accelerate launch` of each command in a configuration's head."""
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    return [shlex.split(command) for command in re.findall(r"accelerate launch (.*)", head)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_head_says_how_it_is_launched(path: Path) -> None:
    assert commands(path)
    for words in commands(path):
        assert words[:2] == ["--config_file", f"accelerate_configs/{path.name}"]
        assert (ROOT / words[words.index("scripts/train.py") + 1]).is_file()


# The others need eight cards, a package, or another host: a card's checks start fsdp2.yaml, test_reliability_long.py
# multi_node.yaml on two hosts made of network namespaces.
@pytest.mark.e2e
@pytest.mark.parametrize(("name", "processes"), [("cpu", 1), ("single_gpu", 1), ("multi_cpu", 2), ("multi_gpu", 2)])
def test_its_command_trains_in_as_many_processes(name: str, processes: int, tmp_path: Path) -> None:
    """As it is written, but for two processes at most, on the CPU, for two steps of a small model."""
    path = ROOT / "accelerate_configs" / f"{name}.yaml"
    [words] = commands(path)
    said = yaml.safe_load(path.read_text())["num_processes"]
    fewer = ["--num_processes", str(processes)] if said > processes else []
    cut = {"max_iters": 2, "eval_iters": 1, "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16, "batch_size": 2}
    cut |= {
        "warmup_iters": 0,
        "lr_schedule": "constant",
        "gradient_accumulation_steps": processes,
        "vocab_size": "none",
        "tokenizer": "char",
        "sample_prompt": "",
    }
    cut |= {"dataset": "shakespeare", "compile": "false", "out_dir": str(tmp_path / "run"), "device": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words[:2], *fewer, *words[2:]]
        + [f"--{key}={value}" for key, value in cut.items() if f"--{key}={value}" not in words],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"} if name == "multi_gpu" else None,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"\bon {processes} x cpu \(", done.stdout + done.stderr), done.stdout
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_fsdp_is_version_2() -> None:
    """Accelerate falls back to version 1 where it is not said."""
    said = yaml.safe_load((ROOT / "accelerate_configs" / "fsdp2.yaml").read_text())["fsdp_config"]
    assert said["fsdp_version"] == 2
    assert said["fsdp_transformer_layer_cls_to_wrap"] == "GPT2Block"
