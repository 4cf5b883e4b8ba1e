"""Which files of a run folder belong on the Hub.

In:  a run folder, and the names of the files in a repository.
Out: names inside the folder, and the content to push for each. Other files (a tracker's logs, notes) are not pushed,
     nor is a link or anything behind one.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from hfgpt.base.errors import InputError
from hfgpt.runs import public

FILES = (
    "model*.safetensors", "model.safetensors.index.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "recipe.yaml", "segments.jsonl", "metrics.jsonl", "samples.jsonl", "*.png",
)  # fmt: skip

LAST = ("config.json", "README.md")
CHECKPOINTS = "checkpoint-*"
MARKER = "COMPLETE"  # hfgpt/train/checkpoint.py writes it into a checkpoint as its last file
_STEP = re.compile(r"checkpoint-(\d{1,15})")


def names(folder: Path, include_checkpoints: bool) -> list[str]:
    """Return what to push besides the card and the config; checkpoints only if they are complete.

    Raises:
        InputError: the config or the card is a link.
    """
    for name in LAST:
        if (folder / name).is_symlink():
            raise InputError("{path}: is a link, and links are not pushed; put the file there", path=folder / name)
    paths = [path for pattern in FILES for path in folder.glob(pattern) if path.is_file()]
    if include_checkpoints:
        named = (path for path in folder.glob(CHECKPOINTS) if _STEP.fullmatch(path.name))  # not one that was replaced
        whole = (path for path in named if (path / MARKER).is_file())
        paths += [path for checkpoint in whole for path in checkpoint.glob("*") if path.is_file()]
    kept = (path for path in paths if not path.is_symlink() and (path.parent == folder or not path.parent.is_symlink()))
    return sorted(path.relative_to(folder).as_posix() for path in kept)


def public_content(folder: Path, name: str) -> Path | bytes:
    """Return what to push for a file: the file itself; for recipe and card, a text without this machine's paths."""
    path = folder / name
    if name not in ("recipe.yaml", "README.md"):
        return path
    recipe = folder / "recipe.yaml"
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if name == "recipe.yaml":
            return public.recipe(text).encode()
        recipe_text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
        for source, shown in sorted(public.hidden(recipe_text).items(), key=lambda pair: -len(pair[0])):
            text = text.replace(source, shown)
    except (yaml.YAMLError, RecursionError):
        raise InputError("{path}: cannot be read as a recipe", path=recipe) from None
    return text.encode()


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a folder."""
    named = ((_STEP.fullmatch(path.name), path) for path in folder.glob(CHECKPOINTS))
    return sorted(int(match[1]) for match, path in named if match and (path / MARKER).is_file())


def newest(repo_files: Iterable[str]) -> list[str]:
    """Return the name of the newest complete checkpoint among a repository's files; empty if there is not one."""
    steps = [
        int(match[1]) for name in repo_files if (match := re.fullmatch(rf"checkpoint-(\d{{1,15}})/{MARKER}", name))
    ]
    return [f"checkpoint-{max(steps)}"] if steps else []


def checkpoint_files(repo_files: Iterable[str]) -> dict[str, int]:
    """Return a repository's files of checkpoints, with their steps."""
    matches = ((name, _STEP.fullmatch(name.partition("/")[0])) for name in repo_files)
    return {name: int(match[1]) for name, match in matches if match}


def stale(folder: Path, repo_files: Iterable[str]) -> list[str]:
    """Return a repository's files of checkpoints that the folder no longer has and that are older than its newest."""
    local = set(checkpoint_steps(folder))
    steps = checkpoint_files(repo_files)
    return [name for name, step in steps.items() if local and step not in local and step < max(local)]
