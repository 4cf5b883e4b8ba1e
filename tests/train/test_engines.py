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
from hfgpt.plan import probe
from hfgpt.plan.survey import Survey
from hfgpt.train import launch, resume, states, step
from hfgpt.train.writer import Writer

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
@pytest.mark.timeout(900)
@pytest.mark.parametrize("more", [(), ("--activation_checkpointing",)], ids=["plain", "checkpointing"])
def test_ddp_compiled_has_the_losses_of_ddp(more: tuple[str, ...], recipe: Path, tmp_path: Path, python: str) -> None:
    """A model of several buckets, at which torch splits the compiled graph; with accumulation."""
    flags = ("--dtype=float32", "--n_layer=4", "--n_embd=256", "--batch_size=2", "--gradient_accumulation_steps=4")
    for folder, compiled in (("eager", "--no_compile"), ("compiled", "--compile")):
        two_processes(python, "ddp", recipe, *flags, *more, compiled, "--max_iters=6", f"--out_dir={tmp_path / folder}")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=1e-5)


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


@pytest.fixture
def sharing(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a run that was prepared as usual, and takes itself for one of DeepSpeed's."""
    survey = Survey(config.build(tiny | {"background_save": True}, "test"), 300, "", None, None, False)
    run = probe.prepare(survey)
    run.writer = Writer(background=True)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    return run


def test_deepspeeds_averages_are_not_read_by_the_main_process_alone(
    sharing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them is a collective: the main process would wait for the others in it."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("a collective that only one process begins")

    monkeypatch.setattr(states, "weights", read)
    monkeypatch.setattr(states, "averages", read)
    resume.reserve(sharing)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.MULTI_GPU)
    with pytest.raises(AssertionError, match="only one process"):
        resume.reserve(sharing)


@pytest.mark.parametrize(("loss", "norm"), [(3.0, 1.0), (math.nan, math.nan), (math.inf, math.nan)])
def test_deepspeed_hides_a_loss_that_is_not_finite(sharing: Any, loss: float, norm: float) -> None:
    """Its norm is then -1, or that of the step before; max_bad_steps counts by the loss."""
    result = step.StepResult(1, torch.tensor(loss), 64, math.nan)
    assert step.update(sharing, result, 1.0).grad_norm == pytest.approx(norm, nan_ok=True)


def test_deepspeeds_step_count_is_where_a_fused_adamw_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device of the flat weights, in float32; a checkpoint has it on the CPU."""
    flat = torch.empty(4, device="meta")
    inner = SimpleNamespace(state={})
    outer = SimpleNamespace(optimizer=inner, single_partition_of_fp32_groups=[flat],
                            _lazy_init_hp_params_optimizer_state=lambda: None)  # fmt: skip
    accessors = SimpleNamespace(safe_set_full_fp32_param=lambda *_: None, safe_set_full_optimizer_state=lambda *_: None)
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(utils=accessors))
    monkeypatch.setitem(sys.modules, "deepspeed.utils", accessors)
    net = torch.nn.Linear(2, 2, bias=False)
    means = {"weight": {"step": torch.tensor(7), "exp_avg": torch.zeros(2, 2), "exp_avg_sq": torch.zeros(2, 2)}}
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    states.load(accelerator, net, SimpleNamespace(optimizer=outer), {"weight": torch.zeros(2, 2)}, means)
    assert (inner.state[flat]["step"].device.type, inner.state[flat]["step"].dtype) == ("meta", torch.float32)


@pytest.mark.e2e
def test_three_processes_resume_bit_for_bit(recipe: Path, run_script: Any, tmp_path: Path) -> None:
    """With two, DDP's sums are the same in any order; with three, their bits depend on how it groups the gradients."""
    launch = ("-m", "torch.distributed.run", "--nproc_per_node=3")
    recipe_of_eight = ("train.py", recipe, "--batch_size=6", "--n_layer=3", "--lr_decay_iters=8", "--eval_interval=4")

    def train(folder: str, *words: str) -> None:
        done = run_script(*recipe_of_eight, *words, f"--out_dir={tmp_path / folder}", launch=launch)
        assert done.returncode == 0, done.stderr

    train("whole", "--max_iters=8")
    train("halves", "--max_iters=4")
    train("halves", "--max_iters=8", "--resume")
    weights = [(tmp_path / folder / "checkpoint-8/model.safetensors").read_bytes() for folder in ("whole", "halves")]
    assert weights[0] == weights[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, while it compiles
def test_a_compiled_step_depends_on_nothing_that_a_checkpoint_lacks(tiny: dict[str, Any]) -> None:
    """No generators of torch's own for the dropout that checkpointing recomputes, no choice of kernels by timings."""
    from torch._functorch import config as autograd
    from torch._inductor import config as inductor

    try:
        for wanted in (True, False):
            launch.make_accelerator(config.build(tiny | {"compile": True, "deterministic": wanted}, "test"))
            assert inductor.deterministic == wanted
            assert not autograd.graphsafe_rng_functionalization
    finally:
        torch.use_deterministic_algorithms(False)


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
