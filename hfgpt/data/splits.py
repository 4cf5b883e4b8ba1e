"""The files of a folder, and which of them are to train on.

In:  a folder, a file or a glob.
Out: :class:`Splits`: the files for training and for validation, by the rules of `datasets` for names of splits.

See https://huggingface.co/docs/datasets/repository_structure: a keyword such as `train`, `valid` or `test` counts where
it stands alone in the name of a folder or file, between the separators ``-._``, a space, or digits.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hfgpt.base.language import plural

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}

SEPARATORS = "-._ 0-9"

NAMED = 3  # files that the line about the splits names of each


@dataclass(frozen=True)
class Splits:
    """Files for training and for validation; `val` is empty if no name says so. `unused` are neither."""

    train: list[Path]
    val: list[Path]
    unused: list[Path]

    def describe(self, root: Path) -> str:
        """One line: how many files are in which split, and the first of them; "" for a single file."""
        if len(self.train) + len(self.val) + len(self.unused) == 1:
            return ""
        names = _names(self.train, root)
        words = [
            plural("training on 1 file ({names})", "training on {n} files ({names})", len(self.train), names=names)
        ]
        if self.val:
            names = _names(self.val, root)
            words.append(plural("validating on 1 ({names})", "validating on {n} ({names})", len(self.val), names=names))
        if self.unused:
            names = _names(self.unused, root)
            words.append(plural("not used: 1 ({names})", "not used: {n} ({names})", len(self.unused), names=names))
        return "; ".join(words)


def _names(paths: list[Path], root: Path) -> str:
    shown = [os.path.relpath(path, root) for path in paths[:NAMED]]
    safe = [name if name.isprintable() else repr(name) for name in shown]
    return ", ".join(safe) + (", …" if len(paths) > NAMED else "")


def split_by_name(root: Path, paths: list[Path]) -> Splits:
    """Which files are which split, by the names of folders below `root` and by their own names.

    Files of another split or of no split are left out if names tell both of training and of validation. If no name
    says "validation", files for testing take its place. If names tell of held-out files alone, the others are for
    training; if they tell of training alone, all files are.
    """
    relative = [Path(os.path.relpath(path, root)) for path in paths]
    by_folder = [_split_of(path.parent.parts, "(?:[{0}].*)?") for path in relative]
    by_name = [_split_of((path.name,), "[{0}].*") for path in relative]
    rules = (
        [_sharded(path) for path in relative],
        [folder or name for folder, name in zip(by_folder, by_name, strict=True)],
        [name or folder for folder, name in zip(by_folder, by_name, strict=True)],
    )
    for training in ("train", None):
        for rule in rules:
            of = {split: [p for p, s in zip(paths, rule, strict=True) if s == split] for split in (*KEYWORDS, None)}
            train, held_out = of[training], of["validation"] or of["test"]
            if train and held_out:
                used = {*train, *held_out}
                return Splits(train, held_out, [path for path in paths if path not in used])
    return Splits(paths, [], [])


def _sharded(path: Path) -> str | None:
    """The split of data/train-00000-of-00001.parquet, the layout in which `datasets` writes to the Hub."""
    match = re.fullmatch(r"data/(\w+)-\d{5}-of-\d{5}.*\..*", path.as_posix())
    return match[1] if match else None


def _split_of(names: Iterable[str], end: str) -> str | None:
    """The first split, in the order of KEYWORDS, that a name tells; `end` is what may stand behind the keyword."""
    for split, keywords in KEYWORDS.items():
        pattern = rf"(?:.*[{SEPARATORS}])?(?:{'|'.join(keywords)}){end.format(SEPARATORS)}"
        if any(re.fullmatch(pattern, name, re.DOTALL | re.IGNORECASE) for name in names):
            return split
    return None


# --------------------------------------------------------------------------------------------------------------- files


def files_below(folder: Path, wanted: Callable[[Path], object]) -> list[Path]:
    """The files below a folder that are wanted, sorted by path; hidden ones are left out.

    Links to folders are followed, each folder once, so that a loop of links ends. A file with several
    names counts once.
    """
    return _each_once(sorted(path for path in _walk(folder) if wanted(path)))


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            folders.clear()
            continue
        seen.add(real)
        # Real folders before links to them, so that a text is found under its own name.
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".")),
            key=lambda name: (os.path.islink(os.path.join(path, name)), name),
        )
        yield from (file for name in names if not name.startswith(".") and (file := Path(path, name)).is_file())


def files_of_glob(pattern: str) -> list[Path]:
    """The files that a pattern matches, sorted by path, each once; ``**`` stands for any number of folders."""
    if "**" not in (parts := Path(pattern).parts):
        return _each_once(sorted(Path(name) for name in glob.iglob(pattern) if os.path.isfile(name)))
    root = glob_root(pattern)  # glob itself would go round in a loop of links
    below = ["(?:[^/]+/)*" if part == "**" else f"{_of_part(part)}/" for part in parts[len(root.parts) :]]
    matches = re.compile("".join(below).removesuffix("/"), re.DOTALL).fullmatch
    return files_below(root, lambda path: matches(path.relative_to(root).as_posix()))


def _of_part(pattern: str) -> str:
    """A regular expression for one name of a path."""
    return fnmatch.translate(pattern).removeprefix("(?s:")[:-3].replace(".*", "[^/]*")


def glob_root(pattern: str) -> Path:
    """The folder above all that a pattern can match."""
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed])


def _each_once(paths: list[Path]) -> list[Path]:
    own = {os.path.realpath(path): path for path in reversed(paths)}
    for path in paths:
        if not path.is_symlink():
            own[os.path.realpath(path)] = path
    kept = set(own.values())
    return [path for path in paths if path in kept]
