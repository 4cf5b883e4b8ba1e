"""An interrupted write never loses the previous checkpoint, and a damaged one is named and skipped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hfgpt.base import files
from hfgpt.base.errors import InputError
from hfgpt.train import checkpoint
from hfgpt.train.checkpoint import CheckpointError

STAGES = ["begin", *checkpoint.TENSOR_FILES, "state.json", "COMPLETE", "rename", "replace", "end"]
FILES = [*checkpoint.TENSOR_FILES, "state.json", "COMPLETE"]


def write(run: Path, step: int, mark: float = 0.0) -> Path:
    """Write a checkpoint whose every part identifies its step and its write."""
    value = torch.tensor([float(step), mark])
    return checkpoint.write(run, step, {"w": value}, {"w/exp_avg": value}, {"cpu.0": value.byte()}, {"mark": mark})


def newest(run: Path) -> tuple[int, float, list[str]]:
    """Return step and mark of the newest valid checkpoint, and the warnings of the search."""
    warnings: list[str] = []
    found = checkpoint.newest_valid(run, warnings.append)
    assert found.model["w"].tolist() == [found.state["step"], found.state["mark"]]
    return found.state["step"], found.state["mark"], warnings


def names(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()}


# --------------------------------------------------------------------------------------------------- write and read


def test_what_is_written_is_read(tmp_path: Path) -> None:
    model = {"a": torch.randn(3, 4), "half": torch.randn(2).bfloat16(), "view": torch.randn(4, 4).t()[1:]}
    optimizer = {"a/exp_avg": torch.randn(3, 4), "a/step": torch.tensor(7.0)}
    rng = {"cpu.0": torch.get_rng_state(), "cpu.1": torch.randint(0, 255, (9,), dtype=torch.uint8)}
    state = {"progress": {"best": 0.1 + 0.2}, "none": None}
    path = checkpoint.write(tmp_path / "new" / "run", 12, model, optimizer, rng, state)
    found = checkpoint.read(path)
    assert path == tmp_path / "new" / "run" / "checkpoint-12"
    for written, read in ((model, found.model), (optimizer, found.optimizer), (rng, found.rng)):
        assert written.keys() == read.keys()
        for name in written:
            assert read[name].dtype == written[name].dtype
            assert torch.equal(read[name], written[name])
    assert state.items() <= found.state.items()
    assert found.state["step"] == 12
    assert sorted(path.name for path in path.iterdir()) == sorted(FILES)


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    for path in write(tmp_path, 1).iterdir():
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert list(file.keys())
        else:
            assert path.read_text(encoding="utf-8").isprintable() or json.loads(path.read_text())


def test_the_optimizers_tree_is_flattened_and_back() -> None:
    tree = {"h.0.w": {"exp_avg": torch.ones(1), "step": torch.zeros(1)}, "b": {"exp_avg": torch.ones(2)}}
    flat = checkpoint.flatten(tree)
    assert flat.keys() == {"h.0.w/exp_avg", "h.0.w/step", "b/exp_avg"}
    assert checkpoint.unflatten(flat) == tree


def test_steps_are_numbers_in_order(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        write(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7.tmp").mkdir()
    (tmp_path / "checkpoint-8").write_text("a file")
    assert checkpoint.steps(tmp_path) == [100, 20, 9]
    assert checkpoint.steps(tmp_path / "nowhere") == []


# ------------------------------------------------------------------------------------------------------------ damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_first(path: Path) -> None:
    flip(path, 0)


def flip_last(path: Path) -> None:
    flip(path, -1)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x01
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [truncate, flip_first, flip_last, empty, Path.unlink, replace_by_folder])
def test_every_damage_is_noticed_named_and_passed_over(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    write(tmp_path, 4)
    damaged = write(tmp_path, 8)
    damage(damaged / file)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(damaged)
    assert str(damaged) in str(caught.value)
    step, _, warnings = newest(tmp_path)
    assert step == 4
    assert [str(damaged) in warning for warning in warnings] == [True]


@pytest.mark.parametrize("file", checkpoint.TENSOR_FILES)
def test_the_damaged_file_is_named(tmp_path: Path, file: str) -> None:
    folder = write(tmp_path, 4)
    flip(folder / file, -1)
    with pytest.raises(CheckpointError, match=f"{file} is damaged: its checksum differs"):
        checkpoint.read(folder)
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"checkpoint-4 is incomplete: {file} is missing"):
        checkpoint.read(folder)


def test_parts_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    first, second = write(tmp_path, 4), write(tmp_path, 8)
    shutil.copy(first / "optimizer.safetensors", second)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is damaged"):
        checkpoint.read(second)


def test_another_format_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, 4)
    state = json.loads((folder / "state.json").read_text())
    files.replace_file(folder / "state.json", json.dumps({**state, "format": 99}))
    files.replace_file(folder / "COMPLETE", files.sha256(folder / "state.json"))
    with pytest.raises(CheckpointError, match="has format 99; this version reads 1"):
        checkpoint.read(folder)


def test_a_foreign_folder_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 4)
    foreign = tmp_path / "checkpoint-500"  # as Transformers' Trainer writes it
    foreign.mkdir()
    (foreign / "trainer_state.json").write_text("{}")
    (foreign / "optimizer.pt").write_bytes(b"\x80\x04")
    step, _, warnings = newest(tmp_path)
    assert step == 4
    assert "COMPLETE is missing" in warnings[0]


def test_where_no_checkpoint_is_whole_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot resume, there is no checkpoint → train anew with --overwrite"):
        newest(tmp_path)
    flip(write(tmp_path, 4) / "model.safetensors", -1)
    with pytest.raises(InputError, match="cannot resume, every checkpoint is damaged"):
        newest(tmp_path)


# ---------------------------------------------------------------------------------------------------------- rotation


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, None, {12}),
        (1, 12, {12}),
        (1, 3, {3, 12}),
        (2, 3, {3, 12}),
        (2, 12, {9, 12}),
        (2, 0, {9, 12}),  # the best one was never written
        (3, 3, {3, 9, 12}),
        (9, 3, {3, 6, 9, 12}),
    ],
)
def test_rotation_keeps_the_latest_and_the_best(tmp_path: Path, keep: int, best: int | None, left: set[int]) -> None:
    for step in (3, 6, 9, 12):
        write(tmp_path, step)
    checkpoint.rotate(tmp_path, 12, keep, best)
    assert set(checkpoint.steps(tmp_path)) == left


def test_rotation_never_prefers_a_damaged_one_that_a_resume_passed_over(tmp_path: Path) -> None:
    """The run went back from 8, which was damaged, to 4, and has now reached 6."""
    write(tmp_path, 4)
    flip(write(tmp_path, 8) / "model.safetensors", -1)
    write(tmp_path, 6)
    checkpoint.rotate(tmp_path, 6, keep=1, best_step=4)
    assert checkpoint.steps(tmp_path) == [6, 4]
    assert newest(tmp_path) == (6, 0.0, [])


# -------------------------------------------------------------------------------------------------- interrupted writes


def fail_at(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def fail(name: str) -> None:
        if name == stage:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "at_stage", fail)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("step", [8, 4], ids=["a new step", "the same step again"])
def test_a_failed_write_at_any_stage_leaves_a_valid_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    write(tmp_path, 4, mark=1)
    with monkeypatch.context() as patch:
        fail_at(patch, stage)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, step, mark=2)
    done = stage == "end"
    assert newest(tmp_path)[:2] == ((step, 2.0) if done else (4, 1.0))
    assert not any(name.startswith(".") for name in names(tmp_path)), "what was half-written takes no room"
    write(tmp_path, step, mark=3)
    checkpoint.rotate(tmp_path, step, keep=2, best_step=None)
    assert newest(tmp_path) == (step, 3.0, [])
    assert names(tmp_path) == {"checkpoint-4", f"checkpoint-{step}"}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12: other threads; the child needs none
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("step", [8, 4], ids=["a new step", "the same step again"])
def test_a_process_that_dies_at_any_stage_leaves_a_valid_checkpoint(tmp_path: Path, stage: str, step: int) -> None:
    write(tmp_path, 4, mark=1)
    child = os.fork()
    if child == 0:
        try:
            checkpoint.at_stage = lambda name: os._exit(9) if name == stage else None
            write(tmp_path, step, mark=2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert newest(tmp_path)[:2] == ((step, 2.0) if stage == "end" else (4, 1.0))
    write(tmp_path, step, mark=3)
    checkpoint.rotate(tmp_path, step, keep=2, best_step=None)
    assert newest(tmp_path) == (step, 3.0, [])
    assert names(tmp_path) == {"checkpoint-4", f"checkpoint-{step}"}


def test_what_safetensors_cannot_write_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        checkpoint.save_tensors({"w": torch.zeros(3)}, tmp_path / "nowhere" / "w.safetensors")


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    files.replace_file(path, "old")
    files.replace_file(path, "n\n")
    assert path.read_text() == "n\n"
    assert names(tmp_path) == {"recipe.yaml"}


def test_discarding_leaves_everything_else(tmp_path: Path) -> None:
    write(tmp_path, 4)
    (tmp_path / ".writing-checkpoint-8").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.discard_unfinished(tmp_path)
    assert names(tmp_path) == {"checkpoint-4", "notes.txt"}
