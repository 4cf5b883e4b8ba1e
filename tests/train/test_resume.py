"""Resuming a run: changes are reported and recorded; how a run stops early, and what it leaves."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import survival
from survival import attempt, differences, do_train, figures, finish, wait_for_step

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.inference import figures as language
from hfgpt.model.schedule import learning_rate
from hfgpt.plan import loss
from hfgpt.plan.survey import survey_of
from hfgpt.runs import metrics, segments
from hfgpt.train import checkpoint, stop


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Any:
    yield
    survival.end_all()


# ------------------------------------------------------------------------------------------------- what changes


def test_evaluating_a_checkpoint_that_was_evaluated(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = do_train(tiny)
    loss = metrics.series(metrics.read(path / "metrics.jsonl"), "val_loss")[1][-1]
    before = figures(path)
    capsys.readouterr()
    do_train(tiny | {"eval_only": True}, resume=True)
    assert f"val {loss:.4f}" in capsys.readouterr().out
    assert figures(path) == before


def test_a_length_below_the_step_reached_is_refused(tiny: dict[str, Any]) -> None:
    path = do_train(tiny)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"max_iters = 6: the run has already reached step 8 .* to at least 8"):
        do_train(tiny | {"max_iters": 6}, resume=True)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_what_a_resume_changes_is_said(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    values = tiny | {"learning_rate": 1e-3}
    do_train(values)
    longer = values | {"max_iters": 16, "dropout": 0.1}
    capsys.readouterr()
    do_train(longer, resume=True)
    said = capsys.readouterr().out
    for line in ("the recipe changes after step 8:", "  max_iters: 8 → 16", "  dropout: 0.0 → 0.1"):
        assert f"{line}\n" in said
    now = learning_rate(9, config.build(longer, "x"))
    assert f"the learning rate of step 9 is {now:.3g}; that of step 8 was 0.0001" in said
    capsys.readouterr()
    do_train(longer | {"log_interval": 2, "cpu_threads": 1}, resume=True)
    assert "the recipe changes" not in capsys.readouterr().out, "nothing that decides the run"


def test_changes_are_rounded_and_those_without_effect_are_marked(
    tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    wsd = tiny | {"lr_schedule": "wsd", "max_iters": 8, "learning_rate": 3e-3}
    path = do_train(wsd)
    capsys.readouterr()
    do_train(wsd | {"learning_rate": 6e-3, "max_iters": 16, "warmup_iters": 2, "grad_clip": 0.5}, resume=True)
    said = capsys.readouterr().out
    assert "  warmup_iters: 1 → 2  (without effect after step 8)\n" in said
    assert "  min_lr: 0.0003 → 0.0006\n" in said
    for line in ("  learning_rate: 0.003 → 0.006", "  lr_decay_iters: 6 → 12", "  grad_clip: 1.0 → 0.5"):
        assert f"{line}\n" in said
    assert "min_lr 0.0003 → 0.0006" in (path / "README.md").read_text("utf-8")
    capsys.readouterr()
    do_train(
        wsd | {"learning_rate": 6e-3, "max_iters": 20, "warmup_iters": 18, "lr_decay_iters": 19, "grad_clip": 0.5},
        resume=True,
    )
    assert "  warmup_iters: 2 → 18\n" in capsys.readouterr().out, "it warms up again"


def test_the_segments_of_a_run_are_kept(tiny: dict[str, Any]) -> None:
    path = do_train(tiny)
    do_train(tiny, resume=True)
    assert [part.step for part in segments.read(path)] == [0], "the same recipe is the same segment"
    do_train(tiny | {"max_iters": 12}, resume=True)
    do_train(tiny | {"max_iters": 16, "lr_decay_iters": 12}, resume=True)
    assert [(part.step, part.recipe["max_iters"]) for part in segments.read(path)] == [(0, 8), (8, 12), (12, 16)]
    said = (path / "segments.jsonl").read_text()
    assert str(path) not in said, "no path of this machine"
    assert tiny["dataset"] not in said


def test_the_precision_is_what_auto_came_to(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    do_train(tiny | {"dtype": "bfloat16"})
    capsys.readouterr()
    do_train(tiny | {"max_iters": 12}, resume=True)  # auto: float32 for such a narrow model
    assert "  dtype: bfloat16 → float32\n" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ how a run stops


def train_an_hour(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], **how: bool) -> Path:
    """Train with a clock that reaches an hour after a hundred steps, however long they take."""
    asked = itertools.count()
    with monkeypatch.context() as patched:
        patched.setattr(stop, "time", SimpleNamespace(monotonic=lambda: 36.0 * next(asked)))
        return do_train(values | {"max_time": "1h"}, began=0.0, **how)


def test_max_time_evaluates_where_it_stops(
    tiny: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints the validation loss and exports the model, which is the best so far; the run can resume from there."""
    values = tiny | {"max_iters": 100_000, "eval_interval": 100_000, "warmup_iters": 1, "lr_decay_iters": 100_000}
    path = train_an_hour(monkeypatch, values)
    [step] = checkpoint.steps(path)
    said = capsys.readouterr().out
    assert f"max_time is reached: stopping after step {step}\nstep {step}/100000  train " in said
    steps, losses = metrics.series(metrics.read(path / "metrics.jsonl"), "val_loss")
    assert steps == [0, step]
    assert losses[1] < losses[0]
    progress = checkpoint.read(path / f"checkpoint-{step}").state["progress"]
    assert (progress["best_step"], progress["evaluated_step"]) == (step, step)
    assert progress["evaluations_without_improvement"] == 0


def test_where_it_was_stopped_does_not_decide_when_it_is_over(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extra evaluation counts for early stopping only if it is the best."""
    values = tiny | {"learning_rate": 3.0, "grad_clip": 0.0, "max_iters": 100_000, "lr_decay_iters": 100_000}
    values |= {"eval_interval": 99_999, "early_stopping_patience": 1}
    path = train_an_hour(monkeypatch, values)
    assert len(metrics.series(metrics.read(path / "metrics.jsonl"), "val_loss")[0]) == 2
    train_an_hour(monkeypatch, values, resume=True)
    assert len(metrics.series(metrics.read(path / "metrics.jsonl"), "val_loss")[0]) == 3


class WaitInEvaluation:
    """A `change`: the second evaluation reports its begin, and waits until the test has sent its signal."""

    def __init__(self, folder: Path) -> None:
        self.began, self.sent, self.passes = folder / "began", folder / "sent", 0

    def __call__(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # signals act, even if the tests' parent process ignored them
        real = language.evaluate_blocks

        def waiting(*arguments: Any) -> tuple[float, int]:
            self.passes += 1
            if self.passes == 13:  # of 24 blocks per split, 4 at a time
                self.began.touch()
                while not self.sent.exists():
                    time.sleep(0.01)
            return real(*arguments)

        language.evaluate_blocks = waiting


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGTERM"])
def test_a_signal_during_an_evaluation(tiny: dict[str, Any], tmp_path: Path, name: str) -> None:
    """It stops within a pass, with a checkpoint; the resume evaluates again, and ends with the same bits."""
    number = getattr(signal, name)
    values = tiny | {"max_iters": 24, "eval_interval": 12, "dropout": 0.2}
    log, path = tmp_path / "log", Path(values["out_dir"])
    change = WaitInEvaluation(tmp_path)
    process = attempt(values, change, log)
    while not change.began.exists():
        assert process.is_alive(), log.read_text()
        time.sleep(0.02)
    assert process.pid
    os.kill(process.pid, number)
    change.sent.touch()
    assert finish(process) == 128 + number
    assert f"{name} received: stopping after step 12" in log.read_text()
    assert "step 12/24  train" not in log.read_text(), "the evaluation did not come to its end"
    assert checkpoint.steps(path) == [12]
    assert finish(attempt(values)) == 0
    whole = tmp_path / "whole"
    assert finish(attempt(values | {"out_dir": str(whole)})) == 0
    assert differences(path, whole) == []


def ignore_hangups() -> None:
    """nohup starts a process like this."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_nohup_is_heeded(tiny: dict[str, Any]) -> None:
    values = tiny | {"max_iters": 60, "eval_interval": 60}
    process = attempt(values, ignore_hangups)
    wait_for_step(Path(values["out_dir"]), 1, process)
    assert process.pid
    os.kill(process.pid, signal.SIGHUP)
    assert finish(process) == 0


# ------------------------------------------------------------------------------------------------- where it leads


def test_before_its_first_step_a_run_says_what_plan_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless the clock has yet to decide its length."""
    values = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 8, "max_iters": 300}
    values |= {"eval_interval": 300, "eval_iters": 1, "device": "cpu"}
    planned = loss.forecast(survey_of(config.build(values, "run")))
    assert planned is not None
    do_train(values | {"out_dir": str(tmp_path / "steps")})
    assert f"validation loss expected at the end: {planned.loss:.2f} ± " in capsys.readouterr().out
    do_train(values | {"time_budget": "3s", "out_dir": str(tmp_path / "time")})
    assert "expected at the end" not in capsys.readouterr().out.split("step 1")[0]


def test_the_forecast_is_renewed_while_it_trains(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """By the law alone, then by the curve too, with an interval; not at the end, and not where the loss has risen."""
    values = tiny | {"max_iters": 160, "eval_interval": 16, "learning_rate": 1e-2, "warmup_iters": 6}
    path = do_train(values)
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if "validation loss expected at the end: " in line]
    steps, losses = metrics.series(metrics.read(path / "metrics.jsonl"), "val_loss")
    lowest = [loss < min(losses[:index], default=math.inf) for index, loss in enumerate(losses)]
    assert len(said) == sum(better for step, better in zip(steps, lowest, strict=True) if step < 160) > 5
    assert len(set(said[:4])) == 1, "the curve tells from the fourth evaluation on"
    expected, half = (float(part) for part in said[-1].split(": ")[1].split(" ± "))
    assert abs(expected - losses[-1]) <= half + 0.005
    assert half < float(said[0].split(" ± ")[1])
