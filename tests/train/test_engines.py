"""Other engines than one process: FSDP2's precision, DeepSpeed's limits, deterministic kernels, generators."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, is_compiled_module
from survival import ROOT, figures

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.train import launch, states

TRAIN_LOSS = 1  # the index in a row of figures()


def two_processes(python: str, engine: str, recipe: Path, *words: str) -> str:
    """Return the output of `accelerate launch` for a run on two CPU processes, with the engine's own configuration."""
    settings = ROOT / "accelerate_configs" / ("multi_cpu.yaml" if engine == "ddp" else "fsdp2.yaml")
    launch = ("-m", "accelerate.commands.launch", "--config_file", str(settings), "--num_processes=2")
    script = Path(__file__).parent / "fsdp.py"
    done = subprocess.run(
        [python, *launch, str(script), str(recipe), *words],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "TEST_ENGINE": engine},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(folder: Path) -> list[float]:
    return [row[TRAIN_LOSS] for row in figures(folder) if math.isfinite(row[TRAIN_LOSS])]


@pytest.fixture
def recipe(tiny: dict[str, Any], write_recipe: Any) -> Path:
    """Return 20 steps without dropout, since an engine may draw its masks in another order."""
    return Path(write_recipe(tiny | {"max_iters": 20, "eval_interval": 10, "n_embd": 32, "lr_decay_iters": 20}))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("dtype", "bound", "engine", "more"),
    [
        ("float32", 1e-6, "fsdp2", ()),
        ("float32", 1e-5, "fsdp2, a step late", ("--optimizer=muon",)),
        ("bfloat16", 2e-3, "fsdp2, a step late", ()),
        ("bfloat16", 2e-3, "fsdp2", ("--activation_checkpointing",)),
    ],
)
def test_fsdp2_has_the_losses_of_ddp(
    dtype: str, bound: float, engine: str, more: tuple[str, ...], recipe: Path, tmp_path: Path, python: str
) -> None:
    """All of Accelerate's FSDP2 code, as on cards; then stopped and resumed half-way."""
    flags = (f"--dtype={dtype}", "--lr_decay_iters=20", *more)  # otherwise the decay would end with a part of the run
    two_processes(python, "ddp", recipe, *flags, f"--out_dir={tmp_path / 'ddp'}")
    said = two_processes(python, engine, recipe, *flags, f"--out_dir={tmp_path / 'fsdp2'}", "--max_iters=10")
    assert re.search(r"engine FSDP, sharded parameters: [1-9]", said)
    two_processes(python, engine, recipe, *flags, f"--out_dir={tmp_path / 'fsdp2'}", "--resume")
    expected = losses(tmp_path / "ddp")
    assert len(expected) == 20
    assert losses(tmp_path / "fsdp2") == pytest.approx(expected, abs=bound)


@pytest.mark.long
def test_fsdp2_compiled_has_the_losses_of_ddp(recipe: Path, tmp_path: Path, python: str) -> None:
    two_processes(python, "ddp", recipe, "--dtype=float32", f"--out_dir={tmp_path / 'ddp'}")
    two_processes(python, "fsdp2", recipe, "--dtype=float32", "--compile", f"--out_dir={tmp_path / 'fsdp2'}")
    assert losses(tmp_path / "fsdp2") == pytest.approx(losses(tmp_path / "ddp"), abs=1e-5)


@pytest.mark.long
def test_deepspeed_trains_resumes_and_leaves_like_one_process(recipe: Path, run_script: Any, tmp_path: Path) -> None:
    """DeepSpeed's configuration as it is, but for one process: its CPU backend counts two processes as one."""
    pytest.importorskip("deepspeed", reason="needs DeepSpeed: DS_BUILD_OPS=0 pip install deepspeed")
    settings = str(ROOT / "accelerate_configs/deepspeed_zero2.yaml")
    launch = ("-m", "accelerate.commands.launch", "--config_file", settings, "--num_processes=1")

    def deepspeed(folder: str, *words: str) -> str:
        # A CPU that the recipe asks for would leave DeepSpeed out.
        words = ("--dtype=float32", "--device=auto", *words)
        command = [sys.executable, *launch, str(ROOT / "scripts/train.py"), str(recipe), *words]
        done = subprocess.run([*command, f"--out_dir={tmp_path / folder}"], capture_output=True, text=True, timeout=280,
                              env={**os.environ, "DS_ACCELERATOR": "cpu"})  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "DeepSpeed" in done.stdout
        return done.stdout

    plain = run_script("train.py", recipe, "--dtype=float32", f"--out_dir={tmp_path / 'plain'}")
    assert plain.returncode == 0, plain.stderr
    deepspeed("whole")
    deepspeed("halves", "--max_iters=10", "--lr_decay_iters=20")
    assert "going on after step 10" in deepspeed("halves", "--resume", "--lr_decay_iters=20")
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "plain"), abs=1e-6)
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("whole", "halves")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("key", "value"), [("spike_guard", 3.0), ("max_bad_steps", 2)])
def test_deepspeed_updates_before_a_guard_can_look(key: str, value: Any) -> None:
    guarded = config.build({key: value}, "test")
    with pytest.raises(InputError, match=f"{key} = .*DeepSpeed updates the weights before"):
        launch.check_engine(guarded, DistributedType.DEEPSPEED)
    launch.check_engine(guarded, DistributedType.MULTI_GPU)
    launch.check_engine(config.build({}, "test"), DistributedType.DEEPSPEED)


def test_deterministic_switches_torch(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        launch.make_accelerator(config.build(tiny | {"deterministic": True}, "test"))
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
    launch.make_accelerator(config.build(tiny, "test"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_devices_own_generator_is_saved_and_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any kind of device; a generator that was not saved keeps its state."""
    own = {"state": torch.arange(4, dtype=torch.uint8)}
    module = SimpleNamespace(
        get_rng_state=lambda: own["state"], set_rng_state=lambda state: own.update(state=state)
    )  # simulates torch.mps and torch.xpu, which this machine lacks
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    for kind in ("cuda", "mps", "xpu"):
        accelerator: Any = SimpleNamespace(process_index=1, device=torch.device(kind))
        saved = states.generators(accelerator)
        assert set(saved) == {"cpu.1", f"{kind}.1"}
        own["state"] = torch.zeros(4, dtype=torch.uint8)
        states.load_generators(accelerator, saved)
        assert torch.equal(own["state"], torch.arange(4, dtype=torch.uint8))
        states.load_generators(accelerator, {"cpu.1": saved["cpu.1"]})
        assert torch.equal(own["state"], torch.arange(4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("values", "compiled"),
    [
        ({"max_iters": 100, "n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64}, False),
        ({"max_iters": 600_000, "batch_size": 12, "gradient_accumulation_steps": 40}, True),
    ],
)
def test_compilation_by_itself_is_for_long_runs_on_a_card(
    values: dict[str, Any], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = config.build(values, "test")
    assert not launch.wants_compilation(recipe, "cpu", "float32", 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert launch.wants_compilation(recipe, "cuda", "bfloat16", 1) == compiled
    for given in (True, False):
        assert launch.wants_compilation(recipe.model_copy(update={"compile": given}), "cuda", "bfloat16", 1) == given


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, while it compiles
def test_a_second_run_in_the_same_process_compiles_as_its_recipe_says(tiny: dict[str, Any]) -> None:
    """Accelerate's state outlives a run; the first one's choice must not decide for all later ones."""
    for compiles in (False, True, False):
        accelerator = launch.make_accelerator(config.build(tiny | {"compile": compiles}, "test"))
        assert is_compiled_module(accelerator.prepare(torch.nn.Linear(2, 2))) == compiles


def test_the_accelerator_is_the_recipes(tiny: dict[str, Any]) -> None:
    assert isinstance(launch.make_accelerator(config.build(tiny, "test")), Accelerator)


@pytest.mark.e2e
def test_torchrun_with_one_process_is_a_plain_run(recipe: Path, run_script: Any, tmp_path: Path) -> None:
    words = ("train.py", recipe, "--max_iters=2", f"--out_dir={tmp_path / 'one'}")
    done = run_script(*words, launch=("-m", "torch.distributed.run", "--nproc_per_node=1"))
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "one")) == 2
