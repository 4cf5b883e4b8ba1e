"""A run that is killed, in its own processes: helpers of the reliability tests.

A fork server loads torch and the project once; every attempt is a fork of it, a process that trains for real and is
killed by a real SIGKILL. So fifty kills take minutes instead of half an hour of fifty starts of Python.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from hfgpt import config
from hfgpt.base.errors import InputError, RunError
from hfgpt.model.gpt2 import LanguageModel
from hfgpt.runs import metrics
from hfgpt.train import checkpoint, launch, states
from hfgpt.train import loop as train
from hfgpt.train import start as beginning
from hfgpt.train.run import Run
from hfgpt.train.step import StepResult

ROOT = Path(__file__).parents[2]

MEASURED = ("train_loss", "learning_rate", "grad_norm", "train_eval_loss", "val_loss", "val_bits_per_character")
STAGES = (
    "begin", "model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "COMPLETE", "rename", "end",
)  # fmt: skip

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["hfgpt.train.loop"])

Attempt = multiprocessing.context.ForkServerProcess


def do_train(values: dict[str, Any], **how: Any) -> Path:
    """Train a recipe in this process; return the run folder."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    resolved = config.build(values, "test")
    assert train.train(resolved, **how) == 0
    return resolved.run_dir


def attempt(
    values: dict[str, Any],
    change: Callable[[], None] | None = None,
    log: Path | None = None,
    resume: bool = True,
    overwrite: bool = False,
) -> Attempt:
    """Start or resume a run in its own process; `change` is called there first (a function of a module)."""
    process = _forks.Process(target=_train, args=(values, change, log, resume, overwrite))
    process.start()
    return process


def _train(
    values: dict[str, Any], change: Callable[[], None] | None, log: Path | None, resume: bool, overwrite: bool
) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    if change is not None:
        change()
    with (
        open(log or os.devnull, "a", buffering=1) as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            sys.exit(train.train(config.build(values, "test"), resume=resume, overwrite=overwrite))
        except InputError as error:
            print(error, file=output)
            sys.exit(2)
        except RunError as error:
            print(f"The run failed at {error}", file=output)
            sys.exit(1)


class KillAt:
    """A `change` that kills its process when the writing of a checkpoint reaches a stage for the `time`-th time."""

    def __init__(self, stage: str, time: int = 1) -> None:
        self.stage, self.left = stage, time

    def __call__(self) -> None:
        checkpoint.at_stage = self._at_stage  # type: ignore[assignment]

    def _at_stage(self, name: str) -> None:
        self.left -= name == self.stage
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


class SlowSteps:
    """A `change` that makes the steps after one, or the `only` one after it, take this many seconds longer."""

    def __init__(self, after: int, seconds: float, only: bool = False) -> None:
        self.after, self.seconds, self.only = after, seconds, only

    def __call__(self) -> None:
        real = train.train_step

        def slow(at: Run, *arguments: Any) -> StepResult:
            if at.progress.step == self.after or (at.progress.step > self.after and not self.only):
                time.sleep(self.seconds)
            return real(at, *arguments)

        train.train_step = slow


class LogBatches:
    """A `change` that records the blocks of every step, one line of JSON each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        real, path = train.to_device, self.path

        def logging(blocks: Any, *where: Any) -> list[dict[str, torch.Tensor]]:
            batches = real(blocks, *where)
            with open(path, "a") as file:
                file.write(json.dumps([batch["input_ids"].tolist() for batch in batches]) + "\n")
            return batches

        train.to_device = logging


def batches_of(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def forget_generators() -> None:
    """A `change` that resumes without the saved random generators: the comparison must notice it."""
    real = beginning.restore

    def restore(at: Run, saved: Any) -> None:
        real(at, saved)
        states.seed(at.accelerator, at.config.seed, at.progress.step)

    beginning.restore = restore


# ------------------------------------------------------------------------------------------------- two processes

TWO = ("-m", "accelerate.commands.launch", "--quiet", "--config_file", str(ROOT / "accelerate_configs/multi_cpu.yaml"))


_started: list[subprocess.Popen[str]] = []


def launch_two(recipe: Path, *arguments: str, launch: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start the training script in two processes, launched in their own process group."""
    command = [sys.executable, *TWO, *launch, str(ROOT / "scripts" / "train.py"), str(recipe), *arguments]
    return start(command, recipe.parent)


def start(command: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Start a command in that folder and in its own process group; see :func:`end_all`."""
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, start_new_session=True,
        env={**os.environ, **variables},
    )  # fmt: skip
    _started.append(started)
    return started


def end_all() -> None:
    """Kill what :func:`start` started and a failed test left running."""
    while _started:
        with _started.pop() as left, contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(left.pid).children(recursive=True):
                process.kill()
            left.kill()


def ranks(launcher: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """Return the training processes of a launcher, by rank."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return {int(c.environ()["RANK"]): c for c in children if "RANK" in c.environ() and "train.py" in str(c.cmdline())}


# ------------------------------------------------------------------------------------------------ how it ended


def finish(process: Attempt, timeout: float = 240) -> int:
    """Wait for an attempt; return its exit code, negative for a signal."""
    process.join(timeout)
    assert process.exitcode is not None, "the run has not ended"
    return process.exitcode


def kill_after(process: Attempt, seconds: float) -> int:
    """Send SIGKILL after this time, if it still runs; return its exit code."""
    process.join(seconds)
    process.kill()
    return finish(process)


def figures(folder: Path) -> list[tuple[float, ...]]:
    """Return the measurements of each step, without times."""
    return [(r["step"], *(r.get(key, math.inf) for key in MEASURED)) for r in metrics.read(folder / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the exported model, and the last checkpoint's weights and averages."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    names = {folder / "model.safetensors", last / "model.safetensors", last / "optimizer.safetensors"}
    return {f"{path.relative_to(folder)}:{key}": t for path in names for key, t in load_file(path).items()}


def differences(folder: Path, whole: Path) -> list[str]:
    """Return the differences between two runs, bit by bit: records and weights, by name; empty for equal runs."""
    ours, theirs = weights(folder), weights(whole)
    out = [] if figures(folder) == figures(whole) else ["metrics.jsonl"]
    out += sorted(ours.keys() ^ theirs.keys())
    return out + [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]


def wait_for_step(folder: Path, step: int, process: Attempt | None = None, seconds: float = 120) -> None:
    """Wait until the run's record has this step; fail at once if the training process has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (process is None or process.is_alive()):
        with contextlib.suppress(Exception):  # it does not exist yet
            if any(record["step"] >= step for record in metrics.read(folder / "metrics.jsonl")):
                return
        time.sleep(0.02)
    raise AssertionError(f"{folder} never came to step {step}")


def multiply_losses(monkeypatch: pytest.MonkeyPatch, *passes: int, by: float) -> None:
    """Multiply the loss of these training forward passes, counted from 1 in this process, by a number."""
    forward, count = LanguageModel.forward, itertools.count(1)

    def multiplied(self: LanguageModel, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = forward(self, input_ids, targets)
        return loss * by if self.training and next(count) in passes else loss

    monkeypatch.setattr(LanguageModel, "forward", multiplied)


def with_scaler(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Use float16 with loss scaling on a CPU, where torch supports both and Accelerate refuses them."""
    real = launch.make_accelerator

    def make(resolved: config.Config) -> Any:
        accelerator = real(resolved)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return accelerator

    monkeypatch.setattr(launch, "make_accelerator", make)
