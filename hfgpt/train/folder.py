"""The run folder: it holds one run at a time, and an older run is never overwritten unasked.

In:  a resolved Config, and whether to resume or to overwrite.
Out: the folder, locked, with the resolved recipe in it; or an InputError, and nothing was written.

A run that is being replaced is moved to ``.previous``, and deleted when the new run has its first checkpoint. If the
new run fails before that, the old one is restored, at once or by the next start.
"""

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
LAUNCH = ".launch"  # which launch of torchrun began the run

# The files of a run. Other files in its folder (trackers' logs, notes) stay where they are.
RUN_FILES = (
    "checkpoint-*", "model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja", "recipe.yaml",
    metrics.FILE_NAME, metrics.SAMPLES, segments.FILE_NAME, "loss.png", "README.md", LAUNCH,
)  # fmt: skip


def check_folder(config: Config, resume: bool, overwrite: bool) -> None:
    """Check out_dir itself, whatever it contains.

    Raises:
        InputError: out_dir contradicts another setting, or is a file.
    """
    folder = config.run_dir
    if resume and overwrite:
        raise InputError("--resume and --overwrite: one resumes the run, the other replaces it; give one of them")
    if folder.exists() and not folder.is_dir():
        raise InputError("out_dir = {folder!r}: is a file → name a folder", folder=str(folder))
    source = Path(config.init_from)
    if config.pretrained and source.exists() and source.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            "init_from = {source!r}: lies in out_dir, which the run writes into → set out_dir to another folder",
            source=config.init_from,
        )


def hold(config: Config, resume: bool, overwrite: bool) -> FolderLock | None:
    """Lock out_dir, if it exists, and check whether this run may use it.

    Raises:
        InputError: another process trains there, or it holds a run that is to be neither resumed nor replaced.
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
    return any((folder / name).exists() for name in (metrics.FILE_NAME, "model.safetensors")) or bool(
        checkpoint.steps(folder)
    )


def refuse_older_run(folder: Path, resume: bool, overwrite: bool) -> None:
    """Raise InputError if the folder holds a run: a run is never overwritten unasked."""
    if holds_run(folder) and not resume and not overwrite:
        raise InputError(
            "out_dir = {folder!r}: holds a run → --resume continues it, --overwrite replaces it, "
            "--out_dir=… puts the new one elsewhere",
            folder=str(folder),
        )


class Use(NamedTuple):
    """How a run uses its folder."""

    begins_anew: bool  # the folder must not hold an older run
    overwrite: bool  # move an older run to .previous
    step: int | None  # keep the record up to this step; None: there is nothing to keep
    branch_from: Path | None = None  # a checkpoint whose run's record is copied
    other_text: bool = False  # whether the branch is on another text, so that the two records do not belong together
    launch: str = ""  # torchrun's, by hfgpt.train.launch.launch_id


def claim(config: Config, lock: FolderLock | None, use: Use, dtype: str) -> FolderLock:
    """Create out_dir, write the resolved recipe there and return the lock.

    Args:
        config: resolved.
        lock: from :func:`hold`; None if the folder did not exist then.
        use: whether the run begins or resumes.
        dtype: the run's precision, for the record of its segments.

    Raises:
        InputError: another process took the folder first, or the record cannot be read; nothing was written.
        OSError: the folder cannot be written.
    """
    folder = config.run_dir
    if lock is None:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder).acquire()
    try:
        refuse_older_run(folder, not use.begins_anew, use.overwrite)
        record = folder / metrics.FILE_NAME
        if use.begins_anew:  # ids that users give are used again: if the older run is put back, it is not this launch's
            (folder / LAUNCH).unlink(missing_ok=True)
        if use.begins_anew and holds_run(folder):
            set_aside(folder)
        if use.begins_anew and use.launch:
            replace_file(folder / LAUNCH, use.launch)
        if use.branch_from is not None and not record.exists():
            copy_record(use.branch_from, folder, use.other_text)
        if use.step is not None:
            # An unreadable record is detected here, before anything is written.
            metrics.MetricsWriter(record).truncate_after(use.step)
            metrics.truncate_samples(folder / metrics.SAMPLES, use.step)
        checkpoint.discard_unfinished(folder)
        segments.begin(folder, max(0, use.step or 0), segments.deciding(config, dtype))
        replace_file(folder / "recipe.yaml", configs.to_yaml(config, in_folder=True))
    except BaseException:
        if use.overwrite:
            recover(folder)
        lock.release()
        raise
    return lock


def copy_record(branch_from: Path, folder: Path, other_text: bool) -> None:
    """Begin a branch's record with that of the checkpoint's run; the first line tells the two apart.

    On another text it begins anew: losses on two texts do not compare.
    """
    source, step = branch_from.parent, int(branch_from.name.rpartition("-")[2])
    if other_text:
        metrics.begin_branch(folder / metrics.FILE_NAME, step, None)
    elif (source / metrics.FILE_NAME).is_file():
        metrics.begin_branch(folder / metrics.FILE_NAME, step, source / metrics.FILE_NAME)
    for name in (segments.FILE_NAME, *([] if other_text else [metrics.SAMPLES])):
        if (source / name).is_file():
            replace_file(folder / name, (source / name).read_text(encoding="utf-8", errors="replace"))


def was_begun_by(folder: Path, launch: str) -> bool:
    """Return whether this launch of torchrun began the folder's run, before a process died and it restarted all."""
    marker = folder / LAUNCH
    return bool(launch) and marker.is_file() and marker.read_text(encoding="utf-8", errors="replace") == launch


def set_aside(folder: Path) -> None:
    """Move a folder's run to `.previous`. After an interruption, :func:`recover` puts it back."""
    moving = folder / MOVING
    moving.mkdir(exist_ok=True)
    for path in run_files(folder):
        path.rename(moving / path.name)
    moving.rename(folder / PREVIOUS)


def discard_previous(folder: Path) -> None:
    """Delete the old run, if there was one: the new run has a checkpoint."""
    shutil.rmtree(folder / PREVIOUS, ignore_errors=True)


def recover(folder: Path) -> bool:
    """Restore a run from `.previous` if its replacement never wrote a checkpoint; return whether it was restored."""
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
    return [path for pattern in RUN_FILES for path in folder.glob(pattern)]
