"""A step on an accelerator: the host does not wait, and what is not finite is left out on the device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from survival import differences
from torch.utils._python_dispatch import TorchDispatchMode

from hfgpt import config
from hfgpt.base.errors import RunError
from hfgpt.model import gpt2
from hfgpt.train import loop, step
from hfgpt.train.start import start

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")  # for which the host would wait for the device


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


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is treated as an accelerator: the host looks at a step while the next one runs."""
    monkeypatch.setattr(step, "must_look", lambda run: False)
    monkeypatch.setattr(loop, "must_look", lambda run: False)


def run(values: dict[str, Any], name: str) -> Path:
    resolved = config.build(values | {"out_dir": str(Path(values["out_dir"]).parent / name)}, "test")
    assert loop.train(resolved) == 0
    return resolved.run_dir


def test_a_step_reads_nothing_from_the_device(tiny: dict[str, Any], behind: None) -> None:
    made = start(config.build(tiny | {"gradient_accumulation_steps": 3}, "test"))
    for number in (0, 1):
        batch = step.to_device(made.corpus.batches.micro_batches(number, *made.share), made.device)
        with Reads() as reads:
            step.train_step(made, batch, made.config.tokens_per_iter, 1e-3)
    assert reads.names == []


def test_looking_a_step_late_changes_nothing(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    values = tiny | {"max_iters": 12, "log_interval": 5, "dropout": 0.1}
    looked = run(values, "looked")
    for module in (step, loop):
        monkeypatch.setattr(module, "must_look", lambda run: False)
    assert differences(looked, run(values, "behind")) == []


def spoil(monkeypatch: pytest.MonkeyPatch, *passes: int) -> None:
    """These forward passes of the training have an infinite loss."""
    real, count = gpt2.LanguageModel.forward, iter(range(1, 1000))

    def forward(self: gpt2.LanguageModel, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = real(self, input_ids, targets)
        return loss * math.inf if self.training and next(count) in passes else loss

    monkeypatch.setattr(gpt2.LanguageModel, "forward", forward)


def test_an_update_that_is_not_finite_is_left_out_on_the_device(
    tiny: dict[str, Any], behind: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 2)
    made = start(config.build(tiny, "test"))
    weights = [parameter.detach().clone() for parameter in made.model.parameters()]
    applied = []
    for number in range(3):
        batch = step.to_device(made.corpus.batches.micro_batches(number, *made.share), made.device)
        applied.append(step.train_step(made, batch, made.config.tokens_per_iter, 1e-2).applied)
        now = [parameter.detach().clone() for parameter in made.model.parameters()]
        assert all(torch.equal(*pair) for pair in zip(weights, now, strict=True)) is (number == 1)
        weights = now
    assert applied == [True, False, True]
    steps = {float(state["step"]) for state in made.optimizer.state.values()}
    assert steps == {2.0}, "AdamW counts the updates that it made"


def test_a_run_that_diverges_stops_and_names_the_step(
    tiny: dict[str, Any], behind: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 6, 7)
    with pytest.raises(RunError, match="step 6: not finite"):
        run(tiny | {"log_interval": 100}, "diverged")
