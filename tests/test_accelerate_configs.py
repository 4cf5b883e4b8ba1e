"""Each Accelerate configuration loads with Accelerate's own loader and says how it is launched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT

CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
EXPECTED = {"cpu", "single_gpu", "multi_gpu", "fsdp2", "deepspeed_zero2", "multi_node", "multi_cpu"}

# What the recipe says: an Accelerate configuration that said it too could only agree or be overruled.
THE_RECIPES = {"mixed_precision", "gradient_accumulation_steps", "gradient_clipping", "dynamo_backend"}


def test_all_of_them_are_here() -> None:
    assert {path.stem for path in CONFIGS} == EXPECTED


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_loads_it(path: Path) -> None:
    loaded = load_config_from_file(str(path))
    said = yaml.safe_load(path.read_text())
    assert loaded.compute_environment.value == "LOCAL_MACHINE"
    assert loaded.num_processes == said["num_processes"]
    assert loaded.num_machines == said["num_machines"]
    assert getattr(loaded.distributed_type, "value", loaded.distributed_type) == said["distributed_type"]
    assert loaded.use_cpu == said["use_cpu"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_precision_and_accumulation_are_left_to_the_recipe(path: Path) -> None:
    said = yaml.safe_load(path.read_text())
    inner = {**said.get("deepspeed_config", {}), **said.get("fsdp_config", {})}
    assert not THE_RECIPES & (said.keys() | inner.keys())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_head_says_how_it_is_launched(path: Path) -> None:
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    commands = re.findall(r"accelerate launch (.*)", head)
    assert commands
    for command in commands:
        assert f"--config_file accelerate_configs/{path.name} " in command
        assert "scripts/train.py " in command
        for recipe in re.findall(r"recipes/\S+", command):
            assert (ROOT / recipe).is_file()


def test_fsdp_is_version_2() -> None:
    """Accelerate falls back to version 1 where it is not said."""
    said = yaml.safe_load((ROOT / "accelerate_configs" / "fsdp2.yaml").read_text())["fsdp_config"]
    assert said["fsdp_version"] == 2
    assert said["fsdp_transformer_layer_cls_to_wrap"] == "GPT2Block"


def test_several_processes_on_a_cpu_are_not_started_as_one() -> None:
    """Accelerate starts a single process for distributed_type MULTI_CPU and for use_cpu."""
    said = yaml.safe_load((ROOT / "accelerate_configs" / "multi_cpu.yaml").read_text())
    assert said["distributed_type"] == "MULTI_GPU"
    assert not said["use_cpu"]
    assert said["num_processes"] == 2
