"""Out of memory is found before the first step, where smaller micro-batches follow; in a later step it is explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from survival import ROOT, TWO, differences, do_train, figures
from torch._subclasses.fake_tensor import FakeTensorMode

from hfgpt import config
from hfgpt.base.errors import RunError
from hfgpt.model import gpt2 as model
from hfgpt.model import optim
from hfgpt.plan import simulate
from hfgpt.train import checkpoint, memory
from hfgpt.train.run import Run
from hfgpt.train.start import start

TRAIN_LOSS = 1  # the index in a row of figures()

# A device with room for two sequences, set up before the training script.
SMALL_DEVICE = """
import os, sys, torch
from hfgpt.model import gpt2 as model
real = model.LanguageModel.forward
def forward(self, input_ids, targets):
    if self.training and len(input_ids) > 2 and os.environ.get("RANK", "1") == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return real(self, input_ids, targets)
model.LanguageModel.forward = forward
"""

# ... whose second process cannot even create the averages at the first try.
SMALLER_DEVICE = """
from hfgpt.train import memory
update, tries = memory.idle_update, []
def idle_update(optimizer, parameters):
    tries.append(0)
    if os.environ.get("RANK") == "1" and len(tries) == 1:
        raise torch.AcceleratorError("CUDA error: out of memory")
    update(optimizer, parameters)
memory.idle_update = idle_update
"""


def room_for(monkeypatch: pytest.MonkeyPatch, sequences: int, steps: int = 0) -> list[int]:
    """Simulate a device that runs out of memory above so many sequences, after some passes; return the tries."""
    real, tried = model.LanguageModel.forward, list[int]()

    def forward(self: model.LanguageModel, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.training:
            tried.append(len(input_ids))
            if len(tried) > steps and len(input_ids) > sequences:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, input_ids, targets)

    monkeypatch.setattr(model.LanguageModel, "forward", forward)
    return tried


@pytest.fixture
def dropped(tiny: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe of 12 sequences a step with dropout, which shows a generator that is not restored."""
    return tiny | {"batch_size": 12, "dropout": 0.2, "fit": "always"}


def test_the_next_divisor_that_fits_is_taken(
    dropped: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """12 → 6 → 4 → 3 → 2: then the run equals, bit for bit, that of a recipe with 2 x 6."""
    small = dropped | {"batch_size": 2, "gradient_accumulation_steps": 6, "fit": "never"}
    asked = do_train(small | {"out_dir": str(tmp_path / "asked")})
    tried = room_for(monkeypatch, 2)
    folder = do_train(dropped)
    assert tried[:5] == [12, 6, 4, 3, 2]
    assert set(tried[5:]) == {2}
    assert differences(folder, asked) == []
    assert "micro-batches of 12 do not fit in memory: taking 2" in capfd.readouterr().err


def test_losses_are_those_of_the_whole_batch(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = tiny | {"batch_size": 8, "fit": "always"}
    whole = figures(do_train(values | {"out_dir": str(tmp_path / "whole")}))
    room_for(monkeypatch, 3)
    small = figures(do_train(values))
    assert [row[TRAIN_LOSS] for row in small] == pytest.approx([row[TRAIN_LOSS] for row in whole], rel=1e-5)


def state_of(run: Run) -> list[torch.Tensor]:
    averages = run.optimizer.optimizer.state_dict()["state"]
    return [
        torch.get_rng_state(),
        *(parameter.detach().clone() for parameter in run.plain.parameters()),
        *(value.clone() for state in averages.values() for value in state.values()),
    ]


@pytest.mark.parametrize("resumed", [False, True], ids=["fresh", "resumed"])
def test_a_try_leaves_no_trace(dropped: dict[str, Any], resumed: bool) -> None:
    """Weights, averages, gradients and generators are restored bit for bit, whether it fits or not."""
    if resumed:
        do_train(dropped | {"max_iters": 4, "lr_decay_iters": 8, "fit": "never"})
    run = start(config.build(dropped, "test"), resume=resumed)
    before = state_of(run)
    assert memory.try_step(run, run.model, 12)
    after = state_of(run)
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(parameter.grad is None for parameter in run.plain.parameters())
    assert bool(run.optimizer.optimizer.state) == resumed


@pytest.mark.parametrize(("mode", "tries"), [("never", 0), ("auto", 0), ("always", 1)])
def test_when_it_tries(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, mode: str, tries: int) -> None:
    """`auto` trusts the recipe on a CPU, where the system swaps instead of refusing memory."""
    run = start(config.build(tiny | {"fit": mode}, "test"))
    tried = room_for(monkeypatch, 1000)
    memory.fit(run)
    assert len(tried) == tries


@pytest.mark.parametrize(("engine", "name"), [("FSDP", "FSDP2"), ("DEEPSPEED", "DeepSpeed")])
def test_where_it_cannot_try_it_says_so(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], engine: str, name: str
) -> None:
    run = start(config.build(tiny | {"fit": "always"}, "test"))
    tried = room_for(monkeypatch, 1000)
    monkeypatch.setattr(run.accelerator.state, "distributed_type", DistributedType[engine])
    memory.fit(run)
    assert not tried
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fit = ")]
    assert f"'always': not tried under {name}" in line
    assert "--batch_size=2 --gradient_accumulation_steps=2" in line


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch warns while it traces its own functions
def test_a_compiled_model_is_not_compiled_for_every_size(
    dropped: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 does not fit: the eager model tries 6, 4, 3 and 2, which fits twice, and then 2 alone is compiled."""
    real, compiled, eager = model.LanguageModel.forward, list[int](), list[int]()

    def forward(self: model.LanguageModel, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            eager.append(len(input_ids))
            if len(input_ids) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, input_ids, targets)

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        size = next(len(tensor) for tensor in inputs if tensor.dtype == torch.int64 and tensor.dim() == 2)
        compiled.append(size)

        def refuse(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        return refuse if size > 2 else graph.forward

    run = start(config.build(dropped, "test"))
    monkeypatch.setattr(model.LanguageModel, "forward", forward)
    run.model = torch.compile(run.model, backend=backend, dynamic=False)
    memory.fit(run)
    assert (compiled, eager, run.micro_batch) == ([12, 2], [6, 4, 3, 2, 2], 2)


def test_another_error_is_not_taken_for_it(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not match")

    run = start(config.build(tiny | {"fit": "always"}, "test"))
    monkeypatch.setattr(model.LanguageModel, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        memory.fit(run)


def test_not_even_one_sequence(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    room_for(monkeypatch, 0)
    with pytest.raises(RunError, match=r"out of memory with one sequence(?s:.*)--activation_checkpointing"):
        do_train(tiny | {"fit": "always"})


@pytest.mark.parametrize("streaming", [False, True])
def test_late_in_a_run(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, streaming: bool) -> None:
    """Finished steps are kept, and the advice in the message continues with the same steps."""
    values = tiny | {"batch_size": 12, "streaming": streaming, "max_iters": 12, "eval_interval": 12}
    whole = figures(do_train(values | {"out_dir": str(tmp_path / "whole")}))
    with monkeypatch.context() as patch:
        room_for(patch, 6, steps=7)
        with pytest.raises(RunError) as failed:
            do_train(values)
    folder = Path(values["out_dir"])
    assert checkpoint.steps(folder) == [7]
    for words in (
        "step 8: out of memory",
        "checkpoint-7",
        "--batch_size=6 --gradient_accumulation_steps=2",
        "--resume",
    ):
        assert words in str(failed.value)
    room_for(monkeypatch, 6)
    resumed = figures(do_train(values | {"batch_size": 6, "gradient_accumulation_steps": 2}, resume=True))
    assert [row[TRAIN_LOSS] for row in resumed] == pytest.approx([row[TRAIN_LOSS] for row in whole], rel=1e-5)


def test_what_to_change_where_batches_are_single(tiny: dict[str, Any]) -> None:
    run = start(config.build(tiny | {"batch_size": 1}, "test"))
    assert memory.advice(run).startswith("--activation_checkpointing")
    run.config = run.config.model_copy(update={"activation_checkpointing": True})
    assert "a smaller block_size" in memory.advice(run)


@pytest.mark.e2e
def test_two_processes_agree(
    dropped: dict[str, Any], write_recipe: Callable[..., Path], run_script: Any, tmp_path: Path
) -> None:
    """Only one of them runs out of memory: both take its micro-batch, and neither waits for the other.

    Muon's processes share the work of an update, but not in a trial.
    """
    dropped["optimizer"] = "muon"
    program = tmp_path / "small_device.py"
    program.write_text(SMALL_DEVICE + SMALLER_DEVICE + (ROOT / "scripts" / "train.py").read_text(), encoding="utf-8")
    fitted, asked = tmp_path / "fitted", tmp_path / "asked"
    done = run_script(program, write_recipe(dropped), f"--out_dir={fitted}", launch=TWO)
    assert done.returncode == 0, done.stderr
    assert "micro-batches of 6 do not fit in memory: taking 2" in done.stderr
    small = write_recipe(dropped | {"batch_size": 2, "gradient_accumulation_steps": 6, "fit": "never"})
    done = run_script("train.py", small, f"--out_dir={asked}", launch=TWO)
    assert done.returncode == 0, done.stderr
    assert differences(fitted, asked) == []


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 GiB.", True),
        ("CUDA error: out of memory\nCUDA kernel errors might be reported at some other call", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes.", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_out_of_memory_by_whoever_says_it(said: str, means: bool) -> None:
    assert memory.is_out_of_memory(RuntimeError(said)) == means
    assert not memory.is_out_of_memory(ValueError(said))


def test_a_model_that_does_not_fit_at_all(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("accelerate.Accelerator.prepare", full)
    with pytest.raises(RunError, match=r"the start: out of memory(?s:.*)a smaller n_layer or n_embd"):
        do_train(tiny)


# ------------------------------------------------------------------------------------------------- the trial's peak

GPT2_124M = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "batch_size": 4}
MEDIUM = {"n_layer": 24, "n_head": 16, "n_embd": 1024, "block_size": 1024, "batch_size": 2}
SMALL = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 16}
WIDE = {"n_layer": 4, "n_head": 8, "n_embd": 1024, "block_size": 128, "batch_size": 2}
SHAPES = [
    (shape | {"gradient_accumulation_steps": steps} | more, vocabulary, dtype)
    for shape, vocabulary, dtype in (
        (GPT2_124M, 50257, "bfloat16"),
        (MEDIUM, 50257, "bfloat16"),
        (SMALL, 321, "float32"),
        (WIDE, 8192, "bfloat16"),
    )
    for steps, more in ((1, {}), (8, {}), (8, {"optimizer": "muon", "activation_checkpointing": shape is SMALL}))
]


@pytest.mark.parametrize(("values", "vocabulary", "dtype"), SHAPES, ids=str)
def test_a_trial_takes_as_much_memory_as_the_worst_of_the_first_steps(
    values: dict[str, Any], vocabulary: int, dtype: str
) -> None:
    """On tensors without content, with an accelerator's operations: the trial's peak and that of steps 1 to 3."""
    recipe = config.build(values | {"dropout": 0.0}, "test")
    trial, steps = simulate.LiveBytes(), simulate.LiveBytes()
    for live in (trial, steps):
        with FakeTensorMode(), live, simulate.operations_of("accelerator"):
            net = model.build(recipe, vocabulary, eos_token_id=0)
            optimizer = optim.build(net, recipe, torch.device("cuda"))
            for parameter in net.parameters():
                live.enter(parameter)

            def forward_and_backward(net: Any = net, live: Any = live) -> None:
                tokens = torch.zeros((recipe.batch_size, recipe.block_size), dtype=torch.int64)
                with torch.autocast("cpu", dtype=getattr(torch, dtype), enabled=dtype != "float32"):
                    loss = net(tokens, tokens)
                live.phase = "backward"  # gradients accumulate in place, as in autograd
                loss.backward()
                live.phase = ""

            micro_batches = min(2, recipe.gradient_accumulation_steps)
            if live is trial:
                memory.rehearse(forward_and_backward, optimizer, micro_batches=micro_batches)
                continue
            for _ in range(3):
                for _ in range(micro_batches):
                    forward_and_backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    assert trial.peak == pytest.approx(steps.peak, rel=0.01)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_trial_leaves_no_trace(optimizer: str) -> None:
    recipe = config.build({"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "optimizer": optimizer}, "test")
    net = model.build(recipe, 30, None)
    made = optim.build(net, recipe, torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    rates = [group["lr"] for group in made.param_groups]
    tokens = torch.zeros((2, 8), dtype=torch.int64)
    memory.rehearse(lambda: net(tokens, tokens).backward(), made, micro_batches=2)
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), before, strict=True))
    assert not made.state
    assert [group["lr"] for group in made.param_groups] == rates


def test_with_ddp_gradients_move_into_its_buckets() -> None:
    """Without accumulation, a separate gradient exists until it is copied: after the pass, all are gone."""
    recipe = config.build({"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8}, "test")
    net = model.build(recipe, 30, None)
    made = optim.build(net, recipe, torch.device("cpu"))
    tokens = torch.zeros((2, 8), dtype=torch.int64)
    kept = {}
    for micro_batches in (1, 2):
        memory.rehearse(lambda: net(tokens, tokens).backward(), made, micro_batches=micro_batches, buckets=True)
        kept[micro_batches] = any(parameter.grad is not None for parameter in net.parameters())
        made.zero_grad()
    assert kept == {1: False, 2: True}
