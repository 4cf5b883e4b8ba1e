"""Where a run continues from, if not from its own folder: the Hub, or another run's checkpoint.

In:  ``--resume=hf://user/run[@revision]``, or ``--branch_from=out/run/checkpoint-600``.
Out: the run folder, downloaded if the Hub is ahead; or the checkpoint, and the folder of its run.

Does not import torch: the recipe, which may come from the Hub, decides how torch is loaded.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfgpt.base.errors import InputError
from hfgpt.base.files import expanded
from hfgpt.base.language import _, listed
from hfgpt.base.lock import FolderLock, Holder
from hfgpt.base.terminal import say, say_reading
from hfgpt.config import Config, build, read_recipe
from hfgpt.runs import segments

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_HUB = re.compile(r"hf://(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class HubRun:
    """A run on the Hub; `revision` None means the main branch."""

    repo: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """The run's name, without its owner."""
        return self.repo.partition("/")[2]


def hub_run(text: str) -> HubRun:
    """Parse ``hf://user/run`` or ``hf://user/run@revision``; raises ValueError that states the format."""
    match = _HUB.fullmatch(text)
    if match is None and _CHECKPOINT.fullmatch(Path(text).name):
        raise ValueError(
            _("a run resumes from its newest checkpoint; one begins a run of its own: --branch_from={text}", text=text)
        )
    if match is None:
        raise ValueError(
            _("must be hf://user/run, or hf://user/run@revision; without a value it resumes from the run folder")
        )
    return HubRun(match[1], match[2])


def branch(text: str) -> Path:
    """Parse the path of a checkpoint folder; raises ValueError that states the format."""
    path = expanded(text)
    if not _CHECKPOINT.fullmatch(path.name) or not path.is_dir():
        run = path.parent if _CHECKPOINT.fullmatch(path.name) else path
        there = sorted(run.glob("checkpoint-*"), key=lambda each: (len(each.name), each.name))
        if there:
            names = listed(each.name for each in there)
            raise ValueError(_("must be a checkpoint of a run; {run} has {names}", run=run, names=names))
        raise ValueError(_("must be a checkpoint of a run, such as out/standard/checkpoint-600"))
    return path


def changes_since(checkpoint: Path) -> dict[str, Any]:
    """Return the values by which the recipe that made a checkpoint differs from its run's present one.

    Values that follow from others are None, so that they follow the branch's own. Empty if the run has kept its recipe.
    """
    run, step = checkpoint.parent, int(checkpoint.name.removeprefix("checkpoint-"))
    parts = segments.read(run)
    made = next((part.recipe for part in reversed(parts) if part.step < step), None)
    if made is None or made == parts[-1].recipe:
        return {}
    last, present = parts[-1].recipe, read_recipe(run)
    changes = {key: value for key, value in made.items() if key not in last or last[key] != value}
    if present.get("dtype", "auto") == "auto":  # each machine chooses its own
        changes.pop("dtype", None)
    for key in changes.keys() & {"warmup_iters", "lr_decay_iters", "min_lr"}:
        derived = build({**present, **changes, key: None}, run.name)
        if getattr(derived, key) == changes[key]:
            changes[key] = None
    return changes


def branch_folder(checkpoint: Path) -> Path:
    """Return a branch's default folder, beside its parent run: relative if the checkpoint was given so."""
    run = checkpoint.parent
    beside = run / ".." if run.name in ("", "..") else run.parent  # typed inside the run
    return beside / f"{run.resolve().name}-from-{checkpoint.name.removeprefix('checkpoint-')}"


def check_repository(config: Config, checkpoint: Path) -> None:
    """Refuse a branch that would push to its parent run's repository.

    Raises:
        InputError: names the repository, and how to give the branch another one.
    """
    trunk = checkpoint.resolve().parent
    try:
        trunk_repository = str(read_recipe(trunk).get("hub_model_id") or trunk.name)
    except InputError:  # downloaded from the Hub without its recipe
        trunk_repository = trunk.name
    if not config.push_to_hub or not _same_repository(config.repository, trunk_repository):
        return
    branch_name = branch_folder(checkpoint).name
    raise InputError(
        "hub_model_id = {repo!r}: is the repository of the run that this one branches from → "
        "--hub_model_id={own} gives the branch one of its own",
        repo=config.repository,
        own=branch_name,
    )


def _same_repository(one: str, other: str) -> bool:
    """Whether two names may mean one repository; without an owner, a name belongs to the token's unknown account."""
    owners, names = zip(*(name.lower().rpartition("/")[::2] for name in (one, other)), strict=True)
    return names[0] == names[1] and (owners[0] == owners[1] or not all(owners))


def bring(run: HubRun, folder: Path, api: HfApi | None = None) -> None:
    """Download a run from the Hub into its folder, unless the folder is already as far.

    Safe to call from several processes of a machine: one downloads the run, the others find it there.

    Args:
        folder: new, empty, or holding the same run.
        api: a client with its own endpoint and token.

    Raises:
        InputError: the repository has no checkpoint, or the folder holds another run or is in use.
        Failure: the Hub cannot be reached.
    """
    from hfgpt.share import contents, hub

    def waiting(holder: Holder) -> None:
        say(_("{folder}: is being downloaded by {holder}; waiting for it", folder=folder, holder=holder), sys.stderr)

    folder.parent.mkdir(parents=True, exist_ok=True)
    brought, older = (folder.with_name(f".{folder.name}.{word}") for word in ("brought", "older"))
    with FolderLock(folder.parent, f".{folder.name}.bringing").acquire(waiting):
        if older.exists():  # a process was killed between the two renames of `_replace`
            if folder.exists():
                shutil.rmtree(older)
            else:
                older.rename(folder)
        shutil.rmtree(brought, ignore_errors=True)
        say_reading(run.repo)
        hub.pull(run.repo, brought, revision=run.revision, newest=True, api=api)
        try:
            remote_step, local_step = (max(contents.checkpoint_steps(path), default=-1) for path in (brought, folder))
            if remote_step < 0:
                raise InputError(
                    "{repo}: has no checkpoint to resume from → push_to_hub: checkpoints pushes them, and "
                    "--init_from={repo} begins a new run with its weights",
                    repo=run.repo,
                )
            if not folder.exists():
                brought.rename(folder)
                return
            if any(folder.iterdir()) and hub.first_line(folder) != hub.first_line(brought):
                raise InputError(
                    "out_dir = {folder!r}: holds another run than {repo} → set out_dir to a new folder",
                    folder=str(folder),
                    repo=run.repo,
                )
            if remote_step > local_step:
                _replace(folder, brought, older)
        finally:
            shutil.rmtree(brought, ignore_errors=True)


def _replace(folder: Path, brought: Path, older: Path) -> None:
    """Replace the folder by the download; files that a run does not push are kept."""
    with FolderLock(folder):
        pass  # no process uses it
    folder.rename(older)
    brought.rename(folder)
    for path in older.iterdir():
        if not (folder / path.name).exists() and not _CHECKPOINT.fullmatch(path.name):
            path.rename(folder / path.name)
    shutil.rmtree(older)
