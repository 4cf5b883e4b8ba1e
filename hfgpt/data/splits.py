"""The files of a folder, and their splits.

In:  a folder, a file or a glob.
Out: :class:`Splits`: the files for training and validation, by the split-name rules of `datasets`.

See https://huggingface.co/docs/datasets/repository_structure: a keyword such as `train`, `valid` or `test` counts if it
stands alone in the name of a folder or file, between the separators ``-._``, a space, or digits.
"""

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hfgpt.base.language import _, listed, plural

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}

SEPARATORS = "-._ 0-9"
NAMED = 3  # files of each split named in the message


@dataclass(frozen=True)
class Splits:
    """Files for training and validation; `val` is empty if no name marks it. `unused` files belong to neither."""

    train: list[Path]
    val: list[Path]
    unused: list[Path]

    def describe(self, root: Path) -> str:
        """Return one line with the number of files in each split and the first few; "" for a single file."""
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
        return _("; ").join(words)


def _names(paths: list[Path], root: Path) -> str:
    shown = [os.path.relpath(path, root) for path in paths[:NAMED]]
    safe = [name if name.isprintable() else repr(name) for name in shown]
    return listed([*safe, "…"] if len(paths) > NAMED else safe)


def split_by_name(root: Path, paths: list[Path]) -> Splits:
    """Assign files to splits by their own names and those of folders below `root`.

    If names mark both training and validation, files of another split or no split are unused. If no name says
    "validation", test files take its place. If names mark only held-out files, the others are for training; if names
    mark only training, all files are for training.
    """
    relative = [Path(os.path.relpath(path, root)) for path in paths]
    by_folder = [_split_of(path.parent.parts, "(?:[{0}].*)?") for path in relative]
    by_name = [_split_of((path.name,), "[{0}].*") for path in relative]
    shards = [_sharded(path) for path in relative]
    if "train" in shards and None not in shards:  # the Hub's own layout: a split of any name is a split of its own
        of = {split: [path for path, s in zip(paths, shards, strict=True) if s == split] for split in shards}
        held_out = of.get("validation") or of.get("test") or []
        used = {*of["train"], *held_out}
        return Splits(of["train"], held_out, [path for path in paths if path not in used])
    rules = (
        shards,
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
    """Return the split of data/train-00000-of-00001.parquet, the layout that `datasets` writes to the Hub."""
    match = re.fullmatch(r"data/(\w+)-\d{5}-of-\d{5}.*\..*", path.as_posix())
    return match[1] if match else None


def _split_of(names: Iterable[str], end: str) -> str | None:
    """Return the first split, in the order of KEYWORDS, in a name; `end` is a pattern for what follows the keyword."""
    for split, keywords in KEYWORDS.items():
        pattern = rf"(?:.*[{SEPARATORS}])?(?:{'|'.join(keywords)}){end.format(SEPARATORS)}"
        if any(re.fullmatch(pattern, name, re.DOTALL | re.IGNORECASE) for name in names):
            return split
    return None


def files_below(folder: Path, wanted: Callable[[Path], object]) -> list[Path]:
    """Return the wanted files below a folder, sorted by path, without hidden ones.

    Links to folders are followed, each folder once, so loops of links end. A file with several names counts once.
    """
    return _each_once(sorted(path for path in _walk(folder) if wanted(path)))


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            folders.clear()
            continue
        seen.add(real)
        # Real folders come before links to them, so that a file keeps its own name.
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".")),
            key=lambda name: (os.path.islink(os.path.join(path, name)), name),
        )
        yield from (file for name in names if not name.startswith(".") and (file := Path(path, name)).is_file())


def files_of_glob(pattern: str) -> list[Path]:
    """Return the files that a pattern matches, sorted by path, each once; ``**`` matches any number of folders."""
    if "**" not in (parts := Path(pattern).parts):
        return _each_once(sorted(Path(name) for name in glob.iglob(pattern) if os.path.isfile(name)))
    root = glob_root(pattern)  # glob itself would follow a loop of links
    below = ["(?:[^/]+/)*" if part == "**" else f"{_of_part(part)}/" for part in parts[len(root.parts) :]]
    matches = re.compile("".join(below).removesuffix("/"), re.DOTALL).fullmatch
    return files_below(root, lambda path: matches(path.relative_to(root).as_posix()))


def _of_part(pattern: str) -> str:
    """Return a regular expression for one part of a path."""
    return fnmatch.translate(pattern).removeprefix("(?s:")[:-3].replace(".*", "[^/]*")


def glob_root(pattern: str) -> Path:
    """Return the common parent folder of everything that a pattern can match."""
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
