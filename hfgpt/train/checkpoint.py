"""Checkpoints on disk: what a resume needs, written so that an interruption never leaves half of one.

In:  named tensors and a small state, from :mod:`hfgpt.train.resume`.
Out: ``<run>/checkpoint-N/`` with

    model.safetensors       weights, by GPT2LMHeadModel's own names
    optimizer.safetensors   AdamW's and Muon's averages, by "<weight>/<average>"
    rng.safetensors         each process's random generators, by "<device>.<process>"
    state.json              step, best loss, position in the data, and size and SHA-256 of the files above
    COMPLETE                SHA-256 of state.json; written last

A write takes these stages: hidden temporary folder → fsync of each file → COMPLETE → rename → fsync of the run folder.
Only then are older checkpoints deleted. Reading checks every checksum and names what is damaged. No file is a pickle.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from hfgpt.base.errors import UNREADABLE, InputError
from hfgpt.base.files import check_regular, disk_errors, make_readable, sha256, sync, write_text
from hfgpt.base.language import _

Tensors = Mapping[str, Tensor]

TENSOR_FILES = ("model.safetensors", "optimizer.safetensors", "rng.safetensors")
FORMAT = 1
_TEMPORARY = ".writing-"
_FOLDER = re.compile(r"checkpoint-(\d+)(\.old)?")


class CheckpointError(Exception):
    """A checkpoint is damaged or was written by another program; the message names the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose checksums match; its tensors are on the CPU."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    state: dict[str, Any]


def at_stage(name: str) -> None:
    """Called before each stage of a write; does nothing. Tests that kill a run during a write replace it."""


def write(run_dir: Path, step: int, model: Tensors, optimizer: Tensors, rng: Tensors, state: Mapping[str, Any]) -> Path:
    """Write ``checkpoint-<step>``, replacing any of the same step, and return its path.

    Raises:
        OSError: the disk is full or not writable; earlier files are untouched.
    """
    target, temporary = run_dir / f"checkpoint-{step}", run_dir / f"{_TEMPORARY}checkpoint-{step}"
    aside = run_dir / f"checkpoint-{step}.old"
    discard_unfinished(run_dir)
    try:
        at_stage("begin")
        temporary.mkdir(parents=True)
        for name, tensors in zip(TENSOR_FILES, (model, optimizer, rng), strict=True):
            at_stage(name)
            save_tensors(tensors, temporary / name)
        at_stage("state.json")
        files = {
            name: {"bytes": (temporary / name).stat().st_size, "sha256": sha256(temporary / name)}
            for name in TENSOR_FILES
        }
        write_text(
            temporary / "state.json", json.dumps({**state, "step": step, "format": FORMAT, "files": files}, indent=1)
        )
        at_stage("COMPLETE")
        write_text(temporary / "COMPLETE", sha256(temporary / "state.json"))
        sync(temporary)
        at_stage("rename")
        if target.exists():  # it may be the only checkpoint, so keep it until the new one is in place
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        at_stage("replace")
        temporary.rename(target)
        sync(run_dir)
        at_stage("end")
        shutil.rmtree(aside, ignore_errors=True)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def save_tensors(tensors: Tensors, path: Path) -> None:
    """Write a safetensors file and fsync it. Raises OSError."""
    with disk_errors(path):
        safetensors.torch.save_file(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, {"format": "pt"}
        )
    make_readable(path)
    sync(path)


def folders(run_dir: Path) -> list[tuple[int, Path]]:
    """Return the checkpoint folders by step, newest first; if one was being replaced, its replacement comes first."""
    named = ((_FOLDER.fullmatch(path.name), path) for path in run_dir.glob("checkpoint-*") if path.is_dir())
    return sorted(((int(name[1]), path) for name, path in named if name), key=lambda item: (-item[0], item[1].name))


def steps(run_dir: Path) -> list[int]:
    """Return the steps that have a checkpoint folder, newest first."""
    return list(dict.fromkeys(step for step, _ in folders(run_dir)))


def newest_valid(run_dir: Path, warn: Callable[[str], None]) -> Checkpoint:
    """Return the newest intact checkpoint; `warn` is called for each damaged one that is skipped.

    Raises:
        InputError: there is no intact checkpoint.
    """
    candidates = folders(run_dir)
    for _step, path in candidates:
        try:
            return read(path)
        except CheckpointError as error:
            warn(_("{error}; looking for an older checkpoint", error=error))
    reason = _("every checkpoint is damaged") if candidates else _("there is no checkpoint")
    raise InputError(
        "out_dir = {folder!r}: cannot resume, {reason} → train anew with --overwrite, or set out_dir",
        folder=str(run_dir),
        reason=reason,
    )


def read(path: Path) -> Checkpoint:
    """Read and check one checkpoint folder.

    Only the files named in the module's docstring are opened, whatever else the folder lists.

    Raises:
        CheckpointError: a file is missing, truncated or altered.
    """
    try:
        for name in ("COMPLETE", "state.json", *TENSOR_FILES):
            check_regular(path / name)
        marker = (path / "COMPLETE").read_text().strip()
        if marker != sha256(path / "state.json"):
            raise CheckpointError(_("{file} is damaged: its checksum differs", file=path / "state.json"))
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state.get("format") != FORMAT:
            raise CheckpointError(
                _(
                    "{checkpoint} has format {format!r}; this version reads {known}",
                    checkpoint=path,
                    format=state.get("format"),
                    known=FORMAT,
                )
            )
        for name in TENSOR_FILES:
            expected = state["files"][name]
            if (path / name).stat().st_size != expected["bytes"] or sha256(path / name) != expected["sha256"]:
                raise CheckpointError(_("{file} is damaged: its checksum differs", file=path / name))
        model, optimizer, rng = (safetensors.torch.load_file(path / name) for name in TENSOR_FILES)
    except FileNotFoundError as error:
        missing = Path(error.filename or "").name
        raise CheckpointError(
            _("{checkpoint} is incomplete: {file} is missing", checkpoint=path, file=missing)
        ) from None
    except (OSError, SafetensorError, *UNREADABLE) as error:
        raise CheckpointError(_("{checkpoint} cannot be read: {error}", checkpoint=path, error=error)) from None
    return Checkpoint(path, model, optimizer, rng, state)


def rotate(run_dir: Path, latest: int, keep: int, best_step: int | None) -> None:
    """Delete the oldest checkpoints beyond `keep`; the one of step `latest` and the best one are always kept.

    Checkpoints of later steps are deleted too: they were damaged, and the run resumed from an older one.
    """
    older = [step for step in steps(run_dir) if step <= latest]
    protected = {latest, best_step} & set(older)
    others = [step for step in older if step not in protected]
    kept = protected | set(others[: max(0, keep - len(protected))])
    for step, path in folders(run_dir):
        if step not in kept:
            shutil.rmtree(path, ignore_errors=True)


def discard_unfinished(run_dir: Path) -> None:
    """Remove what an interrupted write left behind."""
    for path in run_dir.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


# The optimizer's state is a tree by weight and average; a safetensors file is flat.


def flatten(tree: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """{weight: {average: tensor}} → {"weight/average": tensor}"""
    return {f"{outer}/{inner}": tensor for outer, branch in tree.items() for inner, tensor in branch.items()}


def unflatten(flat: Tensors) -> dict[str, dict[str, Tensor]]:
    """The inverse of :func:`flatten`."""
    tree = dict[str, dict[str, Tensor]]()
    for name, tensor in flat.items():
        outer, inner = name.rsplit("/", 1)
        tree.setdefault(outer, {})[inner] = tensor
    return tree
