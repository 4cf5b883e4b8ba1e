"""The promises of docs/en/reliability.md, with a quick test for each; test_reliability_long.py has the rest.

The faults are real: SIGKILL, signals, a full filesystem, a dead or silent process. Out of memory is tested in
test_memory.py, hostile input in test_hostile_input.py, exact resume inside one process in test_train.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import survival
import torch
from safetensors.torch import load_file, save_file
from survival import (
    KillAt,
    LogBatches,
    SlowSteps,
    attempt,
    batches_of,
    differences,
    figures,
    finish,
    launch_two,
    multiply_losses,
    ranks,
    wait_for_step,
    with_scaler,
)

from hfgpt import config
from hfgpt.base.errors import InputError, RunError
from hfgpt.base.files import sha256
from hfgpt.runs.metrics import read
from hfgpt.train import checkpoint
from hfgpt.train import loop as train
from hfgpt.train.start import start
from hfgpt.train.step import StepResult, check_update, may_step

# Dropout and the spike guard have state that a resume must restore.
KILLED = {"dropout": 0.2, "spike_guard": 3.0, "max_iters": 60, "eval_interval": 10, "batch_size": 2}
KILLED |= {"gradient_accumulation_steps": 2}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """whole(values) → the folder of the uninterrupted run, trained once for each recipe."""
    made: dict[str, Path] = {}

    def undisturbed(values: dict[str, Any]) -> Path:
        key = json.dumps({name: value for name, value in values.items() if name != "out_dir"})
        if key not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            assert finish(attempt(values | {"out_dir": str(folder)})) == 0
            made[key] = folder
        return made[key]

    return undisturbed


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    survival.end_all()


# ------------------------------------------------------------------------------------------- 1. killed at any instant


def test_killed_while_writing_a_checkpoint(tiny: dict[str, Any], whole: Callable[[dict[str, Any]], Path]) -> None:
    """It is killed while it writes the second checkpoint, and later ones; the run ends with the same bits."""
    values = tiny | KILLED
    for stage in ("model.safetensors", "COMPLETE", "rename"):
        assert finish(attempt(values, KillAt(stage, 2))) == -signal.SIGKILL
    assert finish(attempt(values)) == 0
    folder = Path(values["out_dir"])
    assert differences(folder, whole(values)) == []
    assert not list(folder.glob(".*")), "nothing unfinished is left"


def test_a_resume_without_the_generators_is_noticed(
    tiny: dict[str, Any], whole: Callable[[dict[str, Any]], Path]
) -> None:
    """The negative control of every comparison here."""
    values = tiny | KILLED
    assert finish(attempt(values, KillAt("end", 2))) == -signal.SIGKILL
    assert finish(attempt(values, survival.forget_generators)) == 0
    assert "metrics.jsonl" in differences(Path(values["out_dir"]), whole(values))


# ------------------------------------------------------------------------------------------------ 2. asked to stop


def test_a_second_signal_ends_at_once(
    tiny: dict[str, Any], whole: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    """The first signal lets the step finish, its echo from a launcher changes nothing, a later one ends at once."""
    values, log = tiny | KILLED, tmp_path / "log"
    folder = Path(values["out_dir"])
    process = attempt(values, SlowSteps(5, 60), log)
    wait_for_step(folder, 5, process)
    assert process.pid
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.kill(process.pid, number)
        time.sleep(0.1)
    time.sleep(1.2)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)  # half of the step
    assert process.exitcode == -signal.SIGTERM
    assert finish(attempt(values)) == 0
    assert differences(folder, whole(values)) == []


def test_an_echo_is_one_request(tiny: dict[str, Any], whole: Callable[[dict[str, Any]], Path], tmp_path: Path) -> None:
    """SIGINT from the terminal and SIGTERM from a launcher: one checkpoint, one command to resume, 128 + signal."""
    values, log = tiny | KILLED, tmp_path / "log"
    folder = Path(values["out_dir"])
    process = attempt(values, SlowSteps(5, 3), log)
    wait_for_step(folder, 5, process)
    assert process.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        os.kill(process.pid, number)
        time.sleep(0.05)
    assert finish(process) == 128 + signal.SIGINT
    assert checkpoint.steps(folder) == [6]
    assert "SIGINT received: stopping after step 6" in log.read_text()
    assert f"{folder / 'recipe.yaml'} --resume" in log.read_text()
    assert finish(attempt(values)) == 0
    assert differences(folder, whole(values)) == []


# ------------------------------------------------------------------------------------------- 3. damaged checkpoints


@pytest.fixture(scope="session")
def two_checkpoints(whole: Callable[[dict[str, Any]], Path], tiny_text: Path) -> Path:
    """Return a run folder with two checkpoints."""
    values = {"dataset": str(tiny_text), "device": "cpu", "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
    values |= {"batch_size": 2, "max_iters": 4, "warmup_iters": 1, "eval_interval": 2, "eval_iters": 1, "num_proc": 1}
    return whole(values | {"sample_prompt": ""})


def cut_short(folder: Path) -> None:
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(100)


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "optimizer.safetensors").write_bytes(content)


def change_the_state(folder: Path) -> None:
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text.replace('"step": 4', '"step": 3'))


def a_trainers_own(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    torch.save({"never": "read"}, folder / "optimizer.pt")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (cut_short, "model.safetensors is damaged: its checksum differs"),
    (flip_a_byte, "optimizer.safetensors is damaged: its checksum differs"),
    (change_the_state, "state.json is damaged: its checksum differs"),
    (lambda folder: (folder / "rng.safetensors").unlink(), "rng.safetensors is missing"),
    (lambda folder: (folder / "COMPLETE").unlink(), "COMPLETE is missing"),
    (a_trainers_own, "COMPLETE is missing"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_is_used(
    two_checkpoints: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder, told = tmp_path / "run", list[str]()
    shutil.copytree(two_checkpoints, folder)
    assert checkpoint.newest_valid(folder, told.append).state["step"] == 4
    damage(folder / "checkpoint-4")
    assert checkpoint.newest_valid(folder, told.append).state["step"] == 2
    [line] = told
    assert words in line
    assert "checkpoint-4" in line
    shutil.rmtree(folder / "checkpoint-2")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        checkpoint.newest_valid(folder, told.append)


def test_a_run_goes_on_from_the_valid_one(tiny: dict[str, Any], whole: Callable[[dict[str, Any]], Path]) -> None:
    values = tiny | KILLED
    folder = Path(values["out_dir"])
    shutil.copytree(whole(values), folder)
    last = max(checkpoint.steps(folder))
    assert last == 60
    cut_short(folder / f"checkpoint-{last}")
    assert finish(attempt(values)) == 0
    assert differences(folder, whole(values)) == []


def test_another_models_checkpoint(tiny: dict[str, Any], two_checkpoints: Path) -> None:
    """It is valid, but of another run: refused with every difference, and nothing is changed."""
    folder = Path(tiny["out_dir"])
    shutil.copytree(two_checkpoints, folder)
    before = figures(folder)
    with pytest.raises(InputError, match=r"another run:(?s:.*)n_layer: 1 in the checkpoint, 2 now"):
        start(config.build(tiny, "test"), resume=True)
    assert figures(folder) == before


# ------------------------------------------------------------------------------------------------ 4. no room, no right


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """small_disk("size=4m") → a tmpfs with these mount options; small_disk("remount,…") changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "hfgpt", str(folder)], capture_output=True)
        if made.returncode:
            pytest.skip(f"a filesystem cannot be mounted here: {made.stderr.decode().strip()}")
        return folder

    if shutil.which("mount") is None:
        pytest.skip("a filesystem cannot be mounted here: there is no mount")
    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def fill(folder: Path) -> None:
    """Leave no free byte."""
    with open(folder / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_a_disk_that_is_full_at_a_checkpoint(
    tiny: dict[str, Any], whole: Callable[[dict[str, Any]], Path], small_disk: Callable[..., Path], tmp_path: Path
) -> None:
    """A checkpoint of this model takes 1.4 MB, its export 0.5 MB: the second checkpoint does not fit."""
    values = tiny | KILLED | {"n_embd": 64, "max_iters": 30}
    expected, log = whole(values), tmp_path / "log"
    values["out_dir"] = str(small_disk("size=3m") / "run")
    folder = Path(values["out_dir"])
    assert finish(attempt(values, log=log)) == 1
    assert "The run failed at step 20: writing failed: " in log.read_text()
    assert "No space left on device" in log.read_text()
    assert "--resume" in log.read_text()
    assert checkpoint.newest_valid(folder, pytest.fail).state["step"] == 10
    small_disk("remount,size=64m")
    assert finish(attempt(values)) == 0
    assert differences(folder, expected) == []


def test_a_disk_that_is_full_between_checkpoints(
    tiny: dict[str, Any], whole: Callable[[dict[str, Any]], Path], small_disk: Callable[..., Path], tmp_path: Path
) -> None:
    """The record does not fit; a resume fails before its first step until there is space."""
    values = tiny | KILLED
    expected, log = whole(values), tmp_path / "log"
    disk = small_disk("size=4m")
    values["out_dir"] = str(disk / "run")
    folder = Path(values["out_dir"])
    # This leaves time to fill the disk between two steps; 4 KB hold about thirty further lines.
    process = attempt(values, SlowSteps(12, 1, only=True), log)
    wait_for_step(folder, 12, process)
    fill(disk)
    assert finish(process) == 1
    told = f"writing failed: {folder}(/metrics.jsonl)?: No space left on device"  # or the export, if it comes first
    assert re.search(told, log.read_text())
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        start(config.build(values, "test"), resume=True)
    (disk / "ballast").unlink()
    assert finish(attempt(values)) == 0
    assert differences(folder, expected) == []


def test_a_folder_that_is_moved_while_it_trains(
    tiny: dict[str, Any], whole: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    """The run ends and makes no new folder; from the new place it goes on."""
    values, log = tiny | KILLED, tmp_path / "log"
    folder, moved = Path(values["out_dir"]), tmp_path / "moved"
    process = attempt(values, SlowSteps(12, 1, only=True), log)
    wait_for_step(folder, 12, process)
    folder.rename(moved)
    assert finish(process) == 1
    assert f"{folder} has gone: it was moved or deleted" in log.read_text()
    assert not folder.exists()
    assert finish(attempt(values | {"out_dir": str(moved)})) == 0
    assert differences(moved, whole(values)) == []


def no_step(*_: object) -> None:
    pytest.fail("a step was made")


def test_an_unwritable_folder_is_found_before_the_first_step(
    tiny: dict[str, Any], small_disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train_step", no_step)
    disk = small_disk("size=1m,ro")
    with pytest.raises(InputError, match=r"out_dir = .*cannot be written: Read-only file system"):
        train.train(config.build(tiny | {"out_dir": str(disk / "run")}, "test"))


def test_a_folder_below_a_file(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(train, "train_step", no_step)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"out_dir = .*cannot be written: Not a directory"):
        train.train(config.build(tiny | {"out_dir": str(tmp_path / "file" / "run")}, "test"))


# -------------------------------------------------------------------------------------------------- 6. divergence


def do_train(values: dict[str, Any]) -> dict[str, Any]:
    """Train in this process; return the last checkpoint's progress."""
    resolved = config.build(values, "test")
    assert train.train(resolved) == 0
    return checkpoint.newest_valid(resolved.run_dir, pytest.fail).state["progress"]


def test_a_spike_is_left_out(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    multiply_losses(monkeypatch, 5, by=1000)
    assert do_train(tiny | {"spike_guard": 5.0})["spikes"] == 1
    assert "warning: step 5: gradient norm" in capfd.readouterr().err
    rows = figures(Path(tiny["out_dir"]))
    norms = [row[3] for row in rows[1:]]
    assert norms[4] > 100 * max(norms[:4] + norms[5:])
    assert max(norms[5:]) < 2 * norms[3]


def test_a_lasting_rise_is_followed(tiny: dict[str, Any]) -> None:
    """The guard must not stop the learning forever: each skipped update raises the average."""
    at = start(config.build(tiny | {"spike_guard": 2.0}, "test"))
    at.progress.average_norm = 1.0
    for step in range(1, 200):
        at.progress.step = step
        if may_step(at, 10.0):
            break
        check_update(at, StepResult(step, torch.zeros(()), 1, 10.0))
    assert 50 < step < 150


def test_overflows_of_loss_scaling_are_skipped_and_counted(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scale of 2^20 overflows and is halved until it fits; an overflow does not count as a bad step."""
    with_scaler(monkeypatch, 2.0**20)
    progress = do_train(tiny)
    assert 1 <= progress["overflows"] <= 6
    norms = [row[3] for row in figures(Path(tiny["out_dir"]))[1:]]
    assert sum(not math.isfinite(norm) for norm in norms) == progress["overflows"]
    assert "diverged" not in capsys.readouterr().out


def test_a_spike_under_loss_scaling(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with_scaler(monkeypatch, 4.0)
    multiply_losses(monkeypatch, 5, by=100)
    progress = do_train(tiny | {"spike_guard": 5.0})
    assert (progress["spikes"], progress["overflows"]) == (1, 0)


def test_weights_that_are_not_finite_are_neither_exported_nor_saved(tiny: dict[str, Any]) -> None:
    """A step of 1e30 is finite, but its result is not: the next evaluation detects that."""
    values = tiny | {"eval_interval": 1, "learning_rate": 1e30, "warmup_iters": 0, "min_lr": 1e30, "sample_prompt": "A"}
    with pytest.raises(RunError, match=r"step \d: not finite: (?s:.*)a lower learning rate(?s:.*)--resume"):
        do_train(values)
    folder = Path(tiny["out_dir"])
    files = [folder / "model.safetensors", *folder.glob("checkpoint-*/model.safetensors")]
    for path in files:
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path


# -------------------------------------------------------------------------------------------- 7. and 8. a process lost


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "silent"])
def test_a_lost_process_ends_the_others(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], number: signal.Signals
) -> None:
    """A dead process is noticed at once; a silent one (as behind a cut network) after process_timeout."""
    values = tiny | {"max_iters": 100_000, "process_timeout": "5s", "eval_interval": 20}
    launcher, folder = launch_two(write_recipe(values)), Path(tiny["out_dir"])
    wait_for_step(folder, 30)
    lost, other = ranks(launcher)[1], ranks(launcher)[0]
    lost.send_signal(number)
    other.wait(60)
    with contextlib.suppress(psutil.NoSuchProcess):
        lost.kill()
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "another process of this run has ended or cannot be reached" in output
    assert "--resume" in output
    assert checkpoint.newest_valid(folder, pytest.fail).state["step"] >= 20


@pytest.mark.e2e
def test_processes_wait_for_a_slow_disk_longer_than_for_each_other(
    tiny: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    """The second checkpoint waits for the first, and the main process with it."""
    values = {"max_iters": 10, "eval_interval": 4, "process_timeout": "3s", "background_save": True}
    recipe, script = write_recipe(tiny | values), Path(__file__).parent / "slow_disk.py"
    launcher = survival.start([sys.executable, *survival.TWO, str(script), str(recipe)], recipe.parent)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output
    assert checkpoint.steps(Path(tiny["out_dir"])) == [10, 8]


def launch_odd(name: str, recipe: Path, **variables: str) -> tuple[int, str]:
    """Start a script of this folder in two processes; return the launcher's exit code and the output."""
    command = [sys.executable, *survival.TWO, str(Path(__file__).parent / name), str(recipe)]
    launcher = survival.start(command, recipe.parent, **variables)
    output, _ = launcher.communicate(timeout=200)
    return launcher.returncode, output


@pytest.mark.e2e
@pytest.mark.parametrize(("place", "fate"), [("evaluation", "silent"), ("save", "silent"), ("save", "dead")])
def test_a_process_lost_between_the_steps(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], place: str, fate: str
) -> None:
    """Under NCCL, the word about a silent process comes before the abort."""
    recipe = write_recipe(tiny | {"process_timeout": "4s", "fit": "always"})
    code, output = launch_odd("lost.py", recipe, TEST_PLACE=place, TEST_FATE=fate)
    assert code == 1
    assert "another process of this run has ended or cannot be reached" in output
    assert ("waits for another process of this run since 3.6s" in output) == (fate == "silent"), output
    assert "--resume" in output


@pytest.mark.e2e
@pytest.mark.parametrize("place", ["sample", "rehearsal"])
def test_the_main_processs_own_work_is_waited_for(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], place: str
) -> None:
    """It may take longer than process_timeout."""
    values = {"sample_prompt": "A"} if place == "sample" else {"time_budget": "15s"}
    recipe = write_recipe(tiny | values | {"process_timeout": "3s"})
    code, output = launch_odd("lost.py", recipe, TEST_PLACE=place, TEST_FATE="busy")
    assert code == 0, output
    assert "waits for another process" not in output


@pytest.mark.e2e
def test_all_processes_resume_what_the_main_process_chose(
    tiny: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    """A shared disk may show a process the newest checkpoint later."""
    path = survival.do_train(tiny)
    assert checkpoint.steps(path) == [8, 4]
    code, output = launch_odd(
        "unlike.py", write_recipe(tiny | {"max_iters": 12, "process_timeout": "5s"}), TEST_SEES="older"
    )
    assert code == 0, output
    assert "going on after step 8" in output
    assert figures(path)[-1][0] == 12


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("sees", "reason"), [("broken", "cannot be read here"), ("other", "checkpoint-8 has other content")]
)
def test_a_process_that_does_not_see_the_checkpoint_ends_all(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], sees: str, reason: str
) -> None:
    path = survival.do_train(tiny)
    before = (path / "metrics.jsonl").read_bytes()
    code, output = launch_odd(
        "unlike.py", write_recipe(tiny | {"max_iters": 12, "process_timeout": "5s"}), TEST_SEES=sees
    )
    assert code != 0
    assert "process 1 does not see the checkpoint from which the main process goes on" in output
    assert reason in output
    assert "exitcode  : 2" in output
    assert (path / "metrics.jsonl").read_bytes() == before


@pytest.mark.e2e
def test_a_time_budget_costs_no_collective_a_step(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Two processes learn what the first decides when they ask each other anyway; a resume repeats it on both."""
    values = {"time_budget": "10s", "dropout": 0.2, "eval_interval": 10_000, "log_interval": 50}
    values |= {"checkpoint_interval": 50, "save_total_limit": 1000}
    recipe, folder = write_recipe(tiny | values), Path(tiny["out_dir"])
    code, output = launch_odd("counted.py", recipe)
    assert code == 0, output
    last = int(figures(folder)[-1][0])
    assert last > 200
    assert int(re.findall(r"gathers (\d+)", output)[0]) < 40 + last / 20
    decided = [int(line["step"]) for line in read(folder / "metrics.jsonl") if "horizon" in line]
    shutil.copytree(folder, tmp_path / "whole")
    for step in [step for step in checkpoint.steps(folder) if step > 50]:
        shutil.rmtree(folder / f"checkpoint-{step}")
    assert decided[-1] > 50
    code, output = launch_odd("counted.py", write_recipe(tiny | values | {"init_from": "resume"}))
    assert code == 0, output
    assert "going on after step 50" in output
    assert differences(folder, tmp_path / "whole") == []


# ------------------------------------------------------------------------------------------------------- 9. streaming


def test_a_stream_goes_on_with_the_same_rows(tiny: dict[str, Any], tmp_path: Path) -> None:
    """After a kill at step 22 and a resume from 20, every block of the uninterrupted run occurs once."""
    values = tiny | KILLED | {"streaming": True, "max_iters": 40}
    once, first, second = (tmp_path / name for name in ("once", "first", "second"))
    assert finish(attempt(values | {"out_dir": str(tmp_path / "whole")}, LogBatches(once))) == 0
    process = attempt(values, Both(LogBatches(first), SlowSteps(22, 1)))
    wait_for_step(Path(values["out_dir"]), 22, process)
    assert survival.kill_after(process, 0) == -signal.SIGKILL
    assert finish(attempt(values, LogBatches(second))) == 0
    assert batches_of(first)[:20] + batches_of(second) == batches_of(once)
    assert differences(Path(values["out_dir"]), tmp_path / "whole") == []


class Both:
    """Two changes in one."""

    def __init__(self, *changes: Callable[[], None]) -> None:
        self.changes = changes

    def __call__(self) -> None:
        for change in self.changes:
            change()


# ------------------------------------------------------------------------------------------------------ 11. a long run


def test_memory_and_handles_stay_as_they_are(tiny: dict[str, Any]) -> None:
    """Between step 200 and step 900 of one run, with evaluations and checkpoints in between."""
    values = tiny | {"max_iters": 1000, "eval_interval": 100, "log_interval": 20}
    process = attempt(values)
    seen = []
    for step in (200, 900):
        wait_for_step(Path(values["out_dir"]), step, process)
        watched = psutil.Process(process.pid)
        handles = []
        for _ in range(20):  # a file that is being written does not count
            handles.append(watched.num_fds())
            time.sleep(0.005)
        seen.append((watched.memory_info().rss, min(handles)))
    assert finish(process) == 0
    (early, early_handles), (late, late_handles) = seen
    assert late < early * 1.05
    assert late_handles == early_handles


# ----------------------------------------------------------------------------- a checkpoint that lies about its files


def test_a_checkpoint_opens_no_other_file(two_checkpoints: Path, tmp_path: Path) -> None:
    """Its list of files is signed only by itself: a name outside the folder is never followed."""
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    at = folder / "checkpoint-4"
    save_file({"stranger": torch.zeros(1)}, at / "model.safetensors")
    state = json.loads((at / "state.json").read_text())
    state["files"]["../../outside.safetensors"] = state["files"].pop("model.safetensors")
    (at / "state.json").write_text(json.dumps(state))
    (at / "COMPLETE").write_text(sha256(at / "state.json"))
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot be read: 'model\.safetensors'"):
        checkpoint.read(at)
