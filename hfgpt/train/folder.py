"""The run folder: one run's at a time, and never an older run's unasked.

In:  a resolved Config, and whether to resume or to overwrite.
Out: the folder, locked, with the resolved recipe in it; or an InputError, and nothing was written.

A run that is to be replaced is set aside in ``.previous``, and deleted when the new run has its first checkpoint. If
the new run fails before, the old one is put back, here or by the next start.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.base.files import replace_file
from hfgpt.base.lock import FolderLock
from hfgpt.config import Config
from hfgpt.runs import metrics, segments
from hfgpt.train import checkpoint

PREVIOUS, MOVING = ".previous", ".moving"

# What belongs to a run. Other files in its folder (trackers' logs, notes) stay where they are.
RUN_FILES = (
    "checkpoint-*", "model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja", "recipe.yaml",
    metrics.FILE_NAME, metrics.SAMPLES, segments.FILE_NAME, "loss.png", "README.md",
)  # fmt: skip


def check_folder(config: Config, resume: bool, overwrite: bool) -> None:
    """What is wrong with out_dir whatever lies in it.

    Raises:
        InputError: it contradicts another setting, or is a file.
    """
    folder = config.run_dir
    if resume and overwrite:
        raise InputError("--resume and --overwrite: one goes on with the run, the other replaces it; give one of them")
    if folder.exists() and not folder.is_dir():
        raise InputError("out_dir = {folder!r}: is a file → name a folder", folder=str(folder))
    source = Path(config.init_from)
    if config.pretrained and source.exists() and source.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            "init_from = {source!r}: lies in out_dir, which the run writes into → set out_dir to another folder",
            source=config.init_from,
        )


def hold(config: Config, resume: bool, overwrite: bool) -> FolderLock | None:
    """Lock out_dir, if it exists, and see whether the run may have it.

    Raises:
        InputError: another process trains there, or it holds a run that is neither to be resumed nor replaced.
        OSError: it cannot be written.
    """
    folder = config.run_dir
    if not folder.is_dir():
        return None
    lock = FolderLock(folder).acquire()
    try:
        recover(folder)
        refuse_older_run(folder, resume, overwrite)
    except BaseException:
        lock.release()
        raise
    return lock


def holds_run(folder: Path) -> bool:
    """Whether a run has written here."""
    return any((folder / name).exists() for name in (metrics.FILE_NAME, "model.safetensors")) or bool(
        checkpoint.steps(folder)
    )


def refuse_older_run(folder: Path, resume: bool, overwrite: bool) -> None:
    """A run is never overwritten unasked. Raises InputError."""
    if holds_run(folder) and not resume and not overwrite:
        raise InputError(
            "out_dir = {folder!r}: holds a run → --resume goes on with it, --overwrite replaces it, "
            "--out_dir=… puts the new one elsewhere",
            folder=str(folder),
        )


class Claim(NamedTuple):
    """What a run wants of its folder."""

    begins_anew: bool  # so that there may not be an older run
    overwrite: bool  # set an older run aside
    step: int | None  # the record is kept up to here; None: there is not any
    branch_from: Path | None = None  # a checkpoint, from whose run the record comes


def claim(config: Config, lock: FolderLock | None, asked: Claim, dtype: str) -> FolderLock:
    """Make out_dir, and write the resolved recipe there; returns the lock.

    Args:
        config: resolved.
        lock: from :func:`hold`; None if there was no folder then.
        asked: whether the run begins or goes on.
        dtype: the precision of the run, for the record of its segments.

    Raises:
        InputError: another process was faster, or the record cannot be read; nothing was written.
        OSError: the folder cannot be written.
    """
    folder = config.run_dir
    if lock is None:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder).acquire()
    try:
        refuse_older_run(folder, not asked.begins_anew, asked.overwrite)
        record = folder / metrics.FILE_NAME
        if asked.begins_anew and holds_run(folder):
            set_aside(folder)
        if asked.branch_from is not None and not record.exists():
            copy_record(asked.branch_from.parent, folder)
        if asked.step is not None:
            # A record that cannot be read is found here, before anything is written.
            metrics.MetricsWriter(record).truncate_after(asked.step)
            metrics.truncate_samples(folder / metrics.SAMPLES, asked.step)
        checkpoint.discard_unfinished(folder)
        segments.begin(folder, max(0, asked.step or 0), segments.deciding(config, dtype))
        replace_file(folder / "recipe.yaml", configs.to_yaml(config, in_folder=True))
    except BaseException:
        if asked.overwrite:
            recover(folder)
        lock.release()
        raise
    return lock


def copy_record(source: Path, folder: Path) -> None:
    """Begin a branch with the record of the run that it is of; the first line tells the two apart."""
    if (source / metrics.FILE_NAME).is_file():
        metrics.copy_as_branch(source / metrics.FILE_NAME, folder / metrics.FILE_NAME)
    for name in (metrics.SAMPLES, segments.FILE_NAME):
        if (source / name).is_file():
            replace_file(folder / name, (source / name).read_text(encoding="utf-8", errors="replace"))


# ------------------------------------------------------------------------------------------- a run that is replaced


def set_aside(folder: Path) -> None:
    """Move the run of a folder into `.previous`. An interruption leaves what :func:`recover` puts back."""
    moving = folder / MOVING
    moving.mkdir(exist_ok=True)
    for path in run_files(folder):
        path.rename(moving / path.name)
    moving.rename(folder / PREVIOUS)


def discard_previous(folder: Path) -> None:
    """The new run has a checkpoint: the old one, if there was one, may go."""
    shutil.rmtree(folder / PREVIOUS, ignore_errors=True)


def recover(folder: Path) -> bool:
    """Put back a run that was set aside, if the new one has come to nothing; whether it did."""
    previous, moving = folder / PREVIOUS, folder / MOVING
    if previous.is_dir():
        if checkpoint.steps(folder):
            discard_previous(folder)
            return False
        for path in run_files(folder):  # the new run's
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        previous.rename(moving)
    if not moving.is_dir():
        return False
    for path in moving.iterdir():
        path.rename(folder / path.name)
    moving.rmdir()
    return True


def run_files(folder: Path) -> list[Path]:
    """The files and folders of the run in a folder."""
    return [path for pattern in RUN_FILES for path in folder.glob(pattern)]
