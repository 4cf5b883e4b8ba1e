"""A step on an accelerator: the host does not wait, and non-finite steps are skipped on the device."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from survival import differences, multiply_losses, with_scaler
from torch.utils._python_dispatch import TorchDispatchMode

from hfgpt import config
from hfgpt.base.errors import RunError
from hfgpt.runs import metrics
from hfgpt.train import loop, memory, step
from hfgpt.train.collective import Waiting
from hfgpt.train.evaluate import losses
from hfgpt.train.start import start
from hfgpt.train.stop import Stop

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")  # for these, the host would wait for the device


class Reads(TorchDispatchMode):
    """Counts the operations that make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.names = list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in READS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


GUARDED = {"spike_guard": 4.0}
OPTIONS: list[dict[str, Any]] = [{}, {"optimizer": "muon"}, GUARDED, GUARDED | {"optimizer": "muon"}]


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat a CPU as an accelerator: the host checks a step while the next one runs."""
    monkeypatch.setattr(step, "must_look", lambda run: False)
    monkeypatch.setattr(loop, "must_look", lambda run: False)


def run(values: dict[str, Any], name: str) -> Path:
    resolved = config.build(values | {"out_dir": str(Path(values["out_dir"]).parent / name)}, "test")
    assert loop.train(resolved) == 0
    return resolved.run_dir


@pytest.mark.parametrize("values", OPTIONS)
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
def test_a_step_reads_nothing_from_the_device(
    tiny: dict[str, Any], behind: None, values: dict[str, Any], scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scaled and "spike_guard" in values:
        return  # the host decides
    if scaled:
        with_scaler(monkeypatch, 4.0)
    made = start(config.build(tiny | values | {"gradient_accumulation_steps": 3}, "test"))
    for number in (0, 1):
        batch = step.to_device(made.corpus.batches.micro_batches(number, *made.share), made.device)
        with Reads() as reads:
            step.train_step(made, batch, made.config.tokens_per_iter, 1e-3)
    assert reads.names == []


@pytest.mark.parametrize("values", OPTIONS)
def test_looking_a_step_late_changes_nothing(
    tiny: dict[str, Any], values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds even if the spike guard skips step 5."""
    values = tiny | {"max_iters": 12, "log_interval": 5, "dropout": 0.1} | values
    multiply_losses(monkeypatch, 5, by=30.0)
    looked = run(values, "looked")
    for module in (step, loop):
        monkeypatch.setattr(module, "must_look", lambda run: False)
    multiply_losses(monkeypatch, 5, by=30.0)
    assert differences(looked, run(values, "behind")) == []
    spikes = json.loads((looked / "checkpoint-12" / "state.json").read_text(encoding="utf-8"))["progress"]["spikes"]
    assert spikes == ("spike_guard" in values)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_overflows_of_loss_scaling_are_left_out_a_step_late(
    tiny: dict[str, Any], behind: None, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scaler(monkeypatch, 2.0**20)
    folder = run(tiny | {"optimizer": optimizer}, "scaled")
    state = json.loads((folder / "checkpoint-8" / "state.json").read_text(encoding="utf-8"))
    assert 1 <= state["progress"]["overflows"] <= 6
    assert 0 < state["scaler"]["scale"] < 2.0**20


@pytest.mark.parametrize("behind_by", [0, 1])
def test_the_time_of_a_step_includes_the_wait_for_the_device(
    tiny: dict[str, Any], behind_by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launched step is not a finished one; the host waits when it settles a step."""
    settle = step.settle

    def waits(at: Any, results: list[step.StepResult], keep: int) -> None:
        time.sleep(0.05)
        settle(at, results, keep)

    monkeypatch.setattr(loop, "settle", waits)
    monkeypatch.setattr(loop, "must_look", lambda run: not behind_by)
    rates = [line["tokens_per_second"] for line in metrics.read(run(tiny, "waits") / "metrics.jsonl")
             if "tokens_per_second" in line]  # fmt: skip
    assert rates
    assert max(rates) < 64 / 0.05


def test_a_wait_for_the_device_is_watched(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL hangs when the host waits for a step, not when it launches one."""
    told, check_update = list[float](), step.check_update

    def hangs(at: Any, result: step.StepResult) -> None:
        while at.progress.step == 2 and not told:
            time.sleep(0.01)
        check_update(at, result)

    @contextmanager
    def watched(at: Any) -> Iterator[None]:
        with Waiting(0.5, lambda: told.append(at.progress.step)):
            yield

    monkeypatch.setattr(step, "check_update", hangs)
    monkeypatch.setattr(loop, "watched", watched)
    run(tiny, "hangs")
    assert told == [2]


@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles
def test_nothing_is_compiled_anew_after_the_trial(tiny: dict[str, Any], behind: None) -> None:
    """Training has one graph, which the trial of `fit` compiles; evaluation has another."""
    graphs = list[int]()

    def compiles(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(len(graphs))
        return graph.forward

    torch._dynamo.reset()
    made = start(config.build(tiny | {"gradient_accumulation_steps": 2, "eval_iters": 3}, "test"))
    made.model = torch.compile(made.model, backend=compiles, dynamic=False, fullgraph=True)  # type: ignore[assignment]
    assert memory.try_step(made, made.model, made.micro_batch)
    assert len(graphs) == 1
    for number in range(3):
        batch = step.to_device(made.corpus.batches.micro_batches(number, *made.share), made.device)
        step.train_step(made, batch, made.config.tokens_per_iter, 1e-3)
        assert len(graphs) == min(1 + number, 2)
        with Stop(None, made.device) as stop:
            losses(made, stop)
    assert len(graphs) == 2


@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles
def test_a_batch_warm_up_compiles_once(tiny: dict[str, Any]) -> None:
    """The micro-batches of its steps have different sizes; filled up, they share a graph and have the same losses."""
    sizes = list[int]()

    def compiles(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        sizes.append(next(len(tensor) for tensor in inputs if tensor.dtype == torch.int64 and tensor.dim() == 2))
        return graph.forward

    torch._dynamo.reset()
    values = tiny | {"batch_size": 4, "gradient_accumulation_steps": 2, "batch_warmup_iters": 6, "dropout": 0.0}
    losses = []
    for compiled in (False, True):
        made = start(config.build(values, "test"), overwrite=True)
        if compiled:
            made.model = torch.compile(made.model, backend=compiles, dynamic=False)  # type: ignore[assignment]
        for number in range(8):
            blocks = made.corpus.batches.micro_batches(number, *made.share)
            batch = step.to_device(blocks, made.device, made.least_sequences)
            targets = made.config.batch_sizes.at(number) * made.config.block_size
            result = step.train_step(made, batch, targets, 1e-3)
            losses.append(float(result.nll) / targets)
        made.lock.release()
    assert sizes == [4]
    assert losses[8:] == pytest.approx(losses[:8], rel=1e-5)


@pytest.mark.parametrize("values", OPTIONS)
def test_an_update_that_is_not_finite_is_left_out_on_the_device(
    tiny: dict[str, Any], behind: None, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, 2, by=math.inf)
    made = start(config.build(tiny | values, "test"))
    weights = [parameter.detach().clone() for parameter in made.model.parameters()]
    applied = []
    for number in range(3):
        batch = step.to_device(made.corpus.batches.micro_batches(number, *made.share), made.device)
        norm = step.train_step(made, batch, made.config.tokens_per_iter, 1e-2).grad_norm
        applied.append(math.isfinite(norm))
        now = [parameter.detach().clone() for parameter in made.model.parameters()]
        assert all(torch.equal(*pair) for pair in zip(weights, now, strict=True)) is (number == 1)
        weights = now
    assert applied == [True, False, True]
    assert all(bool(mean.isfinite().all()) for state in made.optimizer.state.values() for mean in state.values())
    steps = {float(state["step"]) for state in made.optimizer.state.values() if "step" in state}
    assert steps == {2.0}, "AdamW counts the updates that it made"


def test_a_run_that_diverges_stops_and_names_the_step(
    tiny: dict[str, Any], behind: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, 6, 7, by=math.inf)
    with pytest.raises(RunError, match="step 6: not finite"):
        run(tiny | {"log_interval": 100}, "diverged")
