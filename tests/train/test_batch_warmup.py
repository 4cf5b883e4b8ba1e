"""A batch that grows over the first steps: the same run uninterrupted or resumed, on one process or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from survival import TWO, differences, do_train

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.runs import metrics
from hfgpt.train import step
from hfgpt.train.start import start

RISING = {
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "batch_warmup_iters": 7,
    "max_iters": 12,
    "log_interval": 1,
}


def test_a_resume_inside_the_warm_up_has_the_same_bits(tiny: dict[str, Any], tmp_path: Path) -> None:
    values = tiny | RISING | {"dropout": 0.1, "lr_decay_iters": 12}
    whole = do_train(values | {"out_dir": str(tmp_path / "whole")})
    half = do_train(values | {"max_iters": 8})
    do_train(values, resume=True)
    assert differences(half, whole) == []
    with pytest.raises(InputError, match=r"is a checkpoint of another run:\n  batch_warmup_iters: 7 .*, 3 now"):
        do_train(values | {"batch_warmup_iters": 3}, resume=True)


def test_an_empty_micro_batch_changes_nothing(tiny: dict[str, Any]) -> None:
    """A process without a sequence takes part, with a loss of 0 and gradients of 0."""
    run = start(config.build(tiny | {"z_loss": 1e-4}, "test"))
    [batch] = step.to_device([np.zeros((0, 17), dtype=np.int64)], run.device)
    assert batch["input_ids"].shape == batch["targets"].shape == (1, 16)
    loss = run.plain(**batch)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not torch.count_nonzero(p.grad) for p in run.plain.parameters())


@pytest.mark.e2e
def test_two_processes_train_on_the_same_sequences(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Any, tmp_path: Path
) -> None:
    """The first step has one sequence: the second process gets nothing."""
    recipe, records = write_recipe(tiny | RISING), []
    for name, launch in (("one", ()), ("two", TWO)):
        done = run_script("train.py", recipe, f"--out_dir={tmp_path / name}", launch=launch)
        assert done.returncode == 0, done.stderr
        records.append(metrics.read(tmp_path / name / "metrics.jsonl"))
    for key in ("train_loss", "grad_norm", "val_loss"):
        one, two = (metrics.series(record, key)[1] for record in records)
        assert one == pytest.approx(two, rel=2e-5), key
