"""A folder has one run, and an older run is not lost before the new one has a result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import survival
from safetensors.torch import load_file
from survival import attempt, differences, do_train, finish, wait_for_step

from hfgpt import config
from hfgpt.base.errors import InputError, RunError
from hfgpt.base.lock import FolderLock
from hfgpt.runs import metrics, segments
from hfgpt.train import checkpoint, folder
from hfgpt.train import launch as train_launch
from hfgpt.train import loop as train


def contents(path: Path) -> dict[str, bytes]:
    """Return every file of a folder, by its name."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


# ------------------------------------------------------------------------------------------------- one run a folder


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=["fresh", "resume", "overwrite"])
def test_a_second_run_is_refused_and_touches_nothing(tiny: dict[str, Any], how: dict[str, bool]) -> None:
    path = do_train(tiny)
    with FolderLock(path):
        before = contents(path)
        with pytest.raises(InputError, match="is in use by process"):
            train.train(config.build(tiny | {"seed": 2, "max_iters": 12}, "test"), **how)
        assert contents(path) == before
    assert not (path / ".lock").exists()


def test_two_starts_at_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Both find an empty folder: one trains in it, the other is refused and writes nothing."""
    values = tiny | {"max_iters": 300, "eval_interval": 100, "sample_prompt": ""}
    logs = [tmp_path / "log1", tmp_path / "log2"]
    both = [attempt(values | {"seed": seed}, log=log, resume=False) for seed, log in zip((1, 2), logs, strict=True)]
    codes = [finish(process) for process in both]
    assert sorted(codes) == [0, 2], [log.read_text() for log in logs]
    winner = (1, 2)[codes.index(0)]
    path = Path(values["out_dir"])
    assert f"seed: {winner}\n" in (path / "recipe.yaml").read_text()
    steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert not list(path.glob(".*"))
    whole = tmp_path / "whole"
    assert finish(attempt(values | {"seed": winner, "out_dir": str(whole)})) == 0
    assert differences(path, whole) == []


def test_a_killed_runs_lock_is_taken_over(tiny: dict[str, Any]) -> None:
    values = tiny | {"max_iters": 100_000, "eval_interval": 20}
    path = Path(values["out_dir"])
    process = attempt(values)
    wait_for_step(path, 25, process)
    with pytest.raises(InputError, match=f"is in use by process {process.pid} on "):
        train.train(config.build(values, "test"), resume=True)
    process.kill()
    finish(process)
    assert (path / ".lock").exists()
    do_train(values | {"max_iters": 40, "warmup_iters": 5000 // 1000}, resume=True)
    assert not (path / ".lock").exists()


# ------------------------------------------------------------------------------------------- the old run is kept aside


def test_overwrite_gives_the_old_run_back_if_the_new_one_fails(
    tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = do_train(tiny)
    before = contents(path)
    rate = {"learning_rate": 1e30, "min_lr": 1e30, "warmup_iters": 0}
    with pytest.raises(RunError, match="not finite"):
        do_train(tiny | rate, overwrite=True)
    assert contents(path) == before
    assert "the run that was to be replaced has been restored" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["first evaluation", "setting aside", "putting back"])
def test_overwrite_that_is_killed(tiny: dict[str, Any], stage: str) -> None:
    """The next command finds the old run, complete."""
    path = do_train(tiny)
    before = contents(path)
    change = {"first evaluation": kill_in_evaluation, "setting aside": kill_in_renames, "putting back": kill_in_recover}
    process = attempt(tiny | {"seed": 2}, change[stage], resume=False, overwrite=True)
    assert finish(process) == -signal.SIGKILL
    assert contents(path) != before
    with pytest.raises(InputError, match="holds a run"):
        train.train(config.build(tiny, "test"))
    assert contents(path) == before
    do_train(tiny | {"seed": 2}, overwrite=True)
    assert not (path / folder.PREVIOUS).exists()
    assert contents(path).keys() == before.keys()


@pytest.mark.parametrize("named", ["by torchrun", "by the user, twice the same"])
@pytest.mark.parametrize("died", ["before its first checkpoint", "after it"])
def test_a_restart_by_torchrun_with_overwrite_resumes_only_its_own_launchs_run(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, died: str, named: str
) -> None:
    """Before its first checkpoint the old run is put back, which was to be replaced: it must not go on."""

    def launched(launch: str, attempt: int) -> None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/tmp/{launch}/none_x/attempt_{attempt}/0/error.json")

    run_id = "none" if named == "by torchrun" else "100"
    monkeypatch.setattr(train_launch, "join_after_restart", lambda _backend: None)  # this process is alone
    launched("first", 0)
    path = do_train(tiny)
    old = (path / "metrics.jsonl").read_bytes().split(b"\n")[0]
    launched("second", 0)
    new = tiny | {"seed": 2, "learning_rate": 2e-3, "max_iters": 12}
    kill_at = kill_in_evaluation if died.startswith("before") else survival.KillAt("begin", 2)
    process = attempt(new, Launched(run_id, kill_at), resume=False, overwrite=True)
    assert finish(process) == -signal.SIGKILL
    began = (path / "metrics.jsonl").read_bytes().split(b"\n")[0] if died == "after it" else old
    launched("second", 1)
    do_train(new, overwrite=True)
    records = metrics.read(path / "metrics.jsonl")
    assert [record["step"] for record in records][:1] == [0]
    assert records[-1]["step"] == 12
    first = (path / "metrics.jsonl").read_bytes().split(b"\n")[0]
    assert first != old
    assert died.startswith("before") or first == began, "it went on"
    assert [part.step for part in segments.read(path)] == [0], "one recipe"
    assert segments.read(path)[0].recipe["seed"] == 2
    assert not (path / folder.PREVIOUS).exists()


class Launched:
    """A `change` that sets the variables of torchrun's second launch, and makes another change."""

    def __init__(self, run_id: str, change: Callable[[], None]) -> None:
        self.run_id, self.change = run_id, change

    def __call__(self) -> None:
        os.environ |= {
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_RUN_ID": self.run_id,
            "TORCHELASTIC_ERROR_FILE": "/tmp/second/none_x/attempt_0/0/error.json",
        }
        self.change()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_evaluation() -> None:
    train.evaluate = lambda *_: kill()  # type: ignore[assignment]


def kill_in_renames() -> None:
    real, count = Path.rename, 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal count
        count += self.name != "recipe.yaml" and folder.MOVING in str(target)
        if count == 3:
            kill()
        return real(self, target)

    Path.rename = rename  # type: ignore[method-assign, assignment]


def kill_in_recover() -> None:
    """The new run fails, and its process is killed while it restores the old one."""

    def fail(*_: object) -> None:
        real, count = Path.rename, 0

        def rename(self: Path, target: Path) -> Path:
            nonlocal count
            count += self.parent.name == folder.MOVING
            if count == 3:
                kill()
            return real(self, target)

        Path.rename = rename  # type: ignore[method-assign, assignment]
        raise RuntimeError("fails")

    train.evaluate = fail  # type: ignore[assignment]


def test_a_model_is_not_trained_into_its_own_folder(tiny: dict[str, Any]) -> None:
    path = do_train(tiny)
    before = contents(path)
    for source in (path, path / "checkpoint-8", path.parent / "." / path.name):
        with pytest.raises(InputError, match=r"init_from = .*: lies in out_dir"):
            do_train(tiny | {"init_from": str(source)}, overwrite=True)
    assert contents(path) == before


# ---------------------------------------------------------------------------------------- nothing before the checks


def test_a_resume_that_is_refused_has_written_nothing(tiny: dict[str, Any]) -> None:
    path = do_train(tiny)
    with (path / "metrics.jsonl").open("a") as file:
        file.write("not a record\n{}\n")
    before = contents(path)
    with pytest.raises(InputError, match="line"):
        do_train(tiny | {"max_iters": 12}, resume=True)
    assert contents(path) == before


def test_evaluating_writes_nothing_into_a_torn_record(tiny: dict[str, Any]) -> None:
    path = do_train(tiny)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "tr')
    before = contents(path)
    do_train(tiny | {"eval_only": True}, resume=True)
    assert contents(path) == before


# --------------------------------------------------------------------------------------------------- on the move


@pytest.mark.e2e
def test_a_run_moves_between_two_places_and_back(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Any, tmp_path: Path
) -> None:
    """Copied and moved, it resumes from its new place, and ends with the bits of the run that stayed."""
    recipe = write_recipe(tiny | {"dropout": 0.2, "max_iters": 24, "lr_decay_iters": 24})
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "of another name"
    whole = tmp_path / "whole"
    there.parent.mkdir()
    assert run_script("train.py", recipe, f"--out_dir={whole}").returncode == 0

    def go_on(path: Path, steps: int, *words: str) -> None:
        done = run_script("train.py", path, f"--max_iters={steps}", "--lr_decay_iters=24", *words)
        assert done.returncode == 0, done.stderr

    go_on(recipe, 8, f"--out_dir={here}")
    shutil.copytree(here, there)
    kept = contents(here)
    go_on(there, 16, "--resume")
    assert contents(here) == kept, "the original is another run"
    shutil.rmtree(here)
    there.rename(here)
    go_on(here, 24, "--resume")
    assert not there.exists()
    assert load_file(here / "model.safetensors").keys() == load_file(whole / "model.safetensors").keys()
    losses = [metrics.series(metrics.read(path / "metrics.jsonl"), "train_loss")[1] for path in (here, whole)]
    assert losses[0] == losses[1]


def test_no_posix_only_name_is_needed(tmp_path: Path) -> None:
    """On Windows, SIGHUP, SIGUSR1 and the module `resource` do not exist; importing hfgpt.train must not need them."""
    program = """
import importlib, signal, sys
import hfgpt.train.loop
ours = [name for name in sys.modules if name.startswith("hfgpt.")]
for name in ours:
    del sys.modules[name]
sys.modules["resource"] = sys.modules["fcntl"] = None
del signal.SIGHUP, signal.SIGUSR1
import hfgpt.train.loop
from hfgpt.train.stop import SIGNALS
assert [s.name for s in SIGNALS] == ["SIGTERM", "SIGINT"]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Any:
    yield
    survival.end_all()


def test_checkpoints_are_looked_for_in_the_folder(tiny: dict[str, Any]) -> None:
    path = do_train(tiny)
    assert checkpoint.steps(path) == [8, 4]
