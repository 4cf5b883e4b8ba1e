"""Each Accelerate configuration states its command, and that command starts a training."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.utils import DistributedType
from conftest import ROOT

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.train.launch import check_engine

CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
EXPECTED = {"cpu", "single_gpu", "multi_gpu", "fsdp2", "deepspeed_zero2", "multi_node", "multi_cpu"}

# The recipe decides these: a value in an Accelerate configuration would be redundant or overruled.
THE_RECIPES = {"mixed_precision", "gradient_accumulation_steps", "gradient_clipping", "dynamo_backend"}


def test_all_of_them_are_here() -> None:
    assert {path.stem for path in CONFIGS} == EXPECTED


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_precision_and_accumulation_are_left_to_the_recipe(path: Path) -> None:
    said = yaml.safe_load(path.read_text())
    inner = {**said.get("deepspeed_config", {}), **said.get("fsdp_config", {})}
    assert not THE_RECIPES & (said.keys() | inner.keys())


def commands(path: Path) -> list[list[str]]:
    """Return the arguments of each `accelerate launch` command in a configuration's head."""
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    return [shlex.split(command) for command in re.findall(r"accelerate launch (?:--quiet )?(.*)", head)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_head_says_how_it_is_launched(path: Path) -> None:
    assert commands(path)
    for words in commands(path):
        assert words[:2] == ["--config_file", f"accelerate_configs/{path.name}"]
        assert (ROOT / words[words.index("scripts/train.py") + 1]).is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_our_code_accepts_the_engine_with_the_recipe(path: Path) -> None:
    """The recipe in the head divides its batch among as many processes, and uses nothing that the engine lacks."""
    said = yaml.safe_load(path.read_text())
    engine = DistributedType(said["distributed_type"])
    for words in commands(path):
        recipe, *overrides = words[words.index("scripts/train.py") + 1 :]
        resolved = config.load(ROOT / recipe, overrides)
        check_engine(resolved, engine)
        assert resolved.of_process(said["num_processes"]).global_batch * said["num_processes"] == resolved.global_batch


def test_deepspeed_refuses_what_it_cannot_do() -> None:
    said = yaml.safe_load((ROOT / "accelerate_configs" / "deepspeed_zero2.yaml").read_text())
    for values in ({"optimizer": "muon"}, {"spike_guard": 3.0}, {"batch_warmup_iters": 2}):
        with pytest.raises(InputError, match=r"DeepSpeed .*accelerate_configs/.*fsdp2.yaml"):
            check_engine(config.build(values, "test"), DistributedType(said["distributed_type"]))


# train/test_engines.py starts fsdp2.yaml, with a script that makes Accelerate behave as on cards, and DeepSpeed's
# configuration, where that package is installed. train/test_reliability_long.py has two hosts, made of network
# namespaces.
@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "processes"), [("cpu", 1), ("single_gpu", 1), ("multi_cpu", 2), ("multi_gpu", 2), ("multi_node", 2)]
)
def test_its_command_trains_in_as_many_processes(name: str, processes: int, tmp_path: Path, python: str) -> None:
    """Run it unchanged, except for at most two processes, on this machine's CPU, for two steps of a small model."""
    path = ROOT / "accelerate_configs" / f"{name}.yaml"
    said = yaml.safe_load(path.read_text())["num_processes"]
    changed = ["--num_processes", str(processes)] if said > processes else []
    changed += ["--main_process_port", str(free_port())] if name == "multi_node" else []
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
    launched = [
        subprocess.Popen(
            [python, "-m", "accelerate.commands.launch", *words[:2], *changed, *words[2:]]
            + [f"--{key}={value}" for key, value in cut.items() if f"--{key}={value}" not in words],
            cwd=ROOT,
            env={**os.environ, **({"ACCELERATE_USE_CPU": "true"} if name in ("multi_gpu", "multi_node") else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in ([word.replace("10.0.0.1", "127.0.0.1") for word in words] for words in commands(path))
    ]
    told = [process.communicate(timeout=240) for process in launched]
    assert [process.returncode for process in launched] == [0] * len(launched), told
    assert re.search(rf"\bon {processes} x cpu \(", "".join(told[0])), told
    assert (tmp_path / "run" / "model.safetensors").is_file()


def free_port() -> int:
    """Return a port on which nobody listens, below the range from which the system assigns ports."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as listening, contextlib.suppress(OSError):
            listening.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def test_fsdp_is_version_2() -> None:
    """Accelerate falls back to version 1 by default."""
    said = yaml.safe_load((ROOT / "accelerate_configs" / "fsdp2.yaml").read_text())["fsdp_config"]
    assert said["fsdp_version"] == 2
    assert said["fsdp_transformer_layer_cls_to_wrap"] == "GPT2Block"


@pytest.mark.parametrize(
    ("listed", "visible", "processes"),
    [
        ("GPU 0: A\nGPU 1: B", None, 2),
        ("GPU 0: A\nGPU 1: B", "1", 1),
        ("GPU 0: A\nGPU 1: B\nGPU 2: C\nGPU 3: D", "0,3", 2),
        ("GPU 0: A\nGPU 1: B", "", 1),  # no card: a CPU's process
        ("GPU 0: A\n  MIG 1g.10gb     Device  0: (UUID)\n  MIG 1g.10gb     Device  1: (UUID)", None, 1),
        ("\n".join(f"GPU {card}: A" for card in range(6)), None, 4),  # 16 sequences cannot be shared by six
        ("", None, 1),
    ],
)
def test_make_train_starts_a_process_for_each_card_it_may_use(
    listed: str, visible: str | None, processes: int, tmp_path: Path
) -> None:
    """Two processes on one card end in an error of NCCL."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}\nEND\n")
    program.chmod(0o755)
    own = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    own |= {"PATH": f"{tmp_path}{os.pathsep}{own['PATH']}"} | (
        {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    )
    shown = subprocess.run(
        ["make", "--dry-run", "train"], cwd=ROOT, env=own, capture_output=True, text=True, check=True
    ).stdout
    assert f"--num_processes {processes} " in shown
    assert ("--multi_gpu" in shown) == (processes > 1)
