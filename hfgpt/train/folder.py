"""The run folder: whose it is, and what a run finds and leaves there.

In:  a resolved Config, and whether to resume or to overwrite.
Out: the folder, made and with the resolved recipe in it; or an InputError, and nothing was written.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate.utils import broadcast_object_list

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.base.files import replace_file
from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.runs.metrics import FILE_NAME, SAMPLES, truncate_samples
from hfgpt.train import checkpoint
from hfgpt.train.run import Run

RUN_FILES = (FILE_NAME, SAMPLES, "model.safetensors", "loss.png", "README.md", "recipe.yaml")


def holds_run(folder: Path) -> bool:
    """Whether a run has written here."""
    return (folder / FILE_NAME).exists() or (folder / "model.safetensors").exists() or bool(checkpoint.steps(folder))


def check_folder(config: Config, resume: bool, overwrite: bool) -> None:
    """A run is never overwritten unasked.

    Raises:
        InputError: what is in out_dir does not fit what was asked.
    """
    folder = config.run_dir
    if resume and overwrite:
        raise InputError(
            _("--resume and --overwrite: one goes on with the run, the other replaces it; give one of them")
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(_("out_dir = {folder!r}: is a file → name a folder", folder=str(folder)))
    if holds_run(folder) and not resume and not overwrite:
        raise InputError(
            _(
                "out_dir = {folder!r}: holds a run → --resume goes on with it, --overwrite replaces it, "
                "--out_dir=… puts the new one elsewhere",
                folder=str(folder),
            )
        )


def claim_folder(run: Run, overwrite: bool, resumed_step: int | None) -> None:
    """Make out_dir, and write the resolved recipe there. Collective.

    Args:
        overwrite: remove an older run from it first.
        resumed_step: forget what the record says of later steps; None for a new run.

    Raises:
        InputError: it is not writable; on every process alike.
    """
    problems = [_claim(run, overwrite, resumed_step) if run.main else ""]
    if problem := broadcast_object_list(problems)[0]:
        raise InputError(
            _("out_dir = {folder!r}: cannot be written: {problem}", folder=str(run.folder), problem=problem)
        )


def _claim(run: Run, overwrite: bool, resumed_step: int | None) -> str:
    """What kept the folder from being claimed; "" if nothing did."""
    folder = run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for _step, path in checkpoint.folders(folder):
                shutil.rmtree(path)
            for name in RUN_FILES:
                (folder / name).unlink(missing_ok=True)
        checkpoint.discard_unfinished(folder)
        replace_file(folder / "recipe.yaml", configs.to_yaml(run.config))
        if resumed_step is not None:
            run.metrics.truncate_after(resumed_step)
            truncate_samples(folder / SAMPLES, resumed_step)
    except OSError as error:
        return error.strerror or str(error)
    return ""
