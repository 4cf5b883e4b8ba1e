"""Resolve `dataset` to files or rows, for training and for validation.

In:  the config's `dataset`, `dataset_config`, `dataset_split`, `text_column`.
Out: :class:`Sources`: for each split a list of :class:`~hfgpt.data.pieces.Piece`, small enough for many processes to
     share one big file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfgpt.base.errors import InputError, first_line
from hfgpt.base.files import expanded
from hfgpt.base.language import _, listed
from hfgpt.base.terminal import say_reading
from hfgpt.config import EMBEDDED_DATASET, Config
from hfgpt.data.pieces import (
    Part,
    Piece,
    check_column,
    cut_file,
    endings,
    fingerprint_of,
    kind_of,
    names_a_file,
    not_text,
    spread,
)
from hfgpt.data.reading import read
from hfgpt.data.splits import Splits, files_below, files_of_glob, glob_root, split_by_name
from hfgpt.data.texts import TextStream

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

EMBEDDED = Path(__file__).parent / "shakespeare.txt.gz"
VALIDATION_SPLITS = ("validation", "val", "valid", "test")
ROWS = 4096  # rows of a Hub dataset in a piece


@dataclass(frozen=True)
class Sources:
    """The splits of a dataset. `val` is empty if the dataset does not have a validation split.

    The fingerprints change with the content, not with its location. When streaming from the Hub, `stream` holds the
    splits instead. `notice` says which files are which split.
    """

    name: str
    train: list[Piece]
    val: list[Piece]
    train_fingerprint: str
    val_fingerprint: str
    stream: tuple[IterableDataset, IterableDataset | None] | None = None
    notice: str = ""
    column: str = "text"

    def cross_section(self, limit: int, from_start: bool) -> Iterator[Part]:
        """Yield parts of the training text, about `limit` characters: from all of it, or its start when streaming."""
        if self.stream:
            return TextStream([], self.stream[0], self.column, (0,)).from_start()
        pieces = self.train if from_start else spread(self.train, limit)
        return (part for piece in pieces for part in read(piece))

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split, so that nothing need be held out."""
        return bool(self.val or (self.stream and self.stream[1] is not None))


def is_main() -> bool:
    """Whether this process prints messages for its launch."""
    return os.environ.get("RANK", "0") == "0"


def find(config: Config, cache: Path) -> Sources:
    """Resolve the config's `dataset`, reading no more of it than needed.

    Args:
        config: only its data fields are used.
        cache: folder for the digests of large files.

    Raises:
        InputError: it does not exist, cannot be read, or is of an unknown kind; the message says which and why.
    """
    name = config.dataset
    if name == EMBEDDED_DATASET:
        return _from_files(config, Splits([EMBEDDED], [], []), EMBEDDED.parent, cache)
    if (local := local_files(name)) is None:
        return _from_hub(config)
    root, paths = local
    return _from_files(config, split_by_name(root, paths), root, cache)


def local_files(name: str) -> tuple[Path, list[Path]] | None:
    """Return the local files that `dataset` names, and their root folder; None if it is a Hub id.

    Raises:
        InputError: it looks like a path, but no file matches.
    """
    path = expanded(name)
    if path.is_dir():
        if paths := files_below(path, kind_of):
            return path, paths
        raise InputError(
            "dataset = {name!r}: the folder holds no text\n    → put files there that end in {endings}",
            name=name,
            endings=endings(),
        )
    if path.is_file():
        return path.parent, [path]
    if path.exists() or path.is_symlink():
        raise InputError(
            "dataset = {name!r}: is neither a file nor a folder, but a pipe, a device or a broken link\n"
            "    → copy the text into a file",
            name=name,
        )
    if any(letter in name for letter in "*?["):
        if paths := files_of_glob(str(path)):
            return glob_root(str(path)), paths
        raise InputError(
            "dataset = {name!r}: no file matches\n    → check the pattern; {endings} are read",
            name=name,
            endings=endings(),
        )
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or names_a_file(name):
        raise InputError(
            "dataset = {name!r}: no such file or folder\n"
            "    → {path} does not exist; give 'shakespeare', a file, folder or glob of {endings}, or a Hub id such as "
            "'user/name'",
            name=name,
            path=path.absolute(),
            endings=endings(),
        )
    return None


# --------------------------------------------------------------------------------------------------------------- files


def _from_files(config: Config, splits: Splits, root: Path, cache: Path) -> Sources:
    _check_kinds(config, [*splits.train, *splits.val])
    try:
        train, val = (
            [piece for path in paths for piece in cut_file(path, config.text_column)]
            for paths in (splits.train, splits.val)
        )
        prints = [
            fingerprint_of(paths, config.text_column, cache, by_name=config.streaming)
            for paths in (splits.train, splits.val)
        ]
    except OSError as error:
        raise InputError("dataset = {name!r}: cannot be read: {reason}", name=config.dataset, reason=error) from None
    if not train:
        raise InputError("dataset = {name!r}: is empty\n    → give files with text in them", name=config.dataset)
    return Sources(config.dataset, train, val, prints[0], prints[1], notice=splits.describe(root))


def _check_kinds(config: Config, paths: Iterable[Path]) -> None:
    kinds: dict[str, Path] = {}
    for path in paths:
        if (kind := kind_of(path)) is None:
            raise InputError(
                "dataset = {name!r}: {path!r} ends in {ending!r}; files must end in {endings}\n"
                "    → rename it to .txt if it is plain text, else convert it",
                name=config.dataset,
                path=str(path),
                ending=path.suffix,
                endings=endings(),
            )
        kinds.setdefault(kind, path)
    if len(kinds) > 1:
        raise InputError(
            "dataset = {name!r}: holds files of different kinds ({files})\n"
            "    → choose one kind with a glob such as 'folder/*.txt'",
            name=config.dataset,
            files=listed(repr(str(path)) for path in kinds.values()),
        )


# ------------------------------------------------------------------------------------------------------------- the Hub


def _from_hub(config: Config) -> Sources:
    """Open a Hub dataset, downloaded once into the cache of `datasets`, or streamed."""
    import datasets

    if not is_main():  # show progress bars only for a download
        datasets.disable_progress_bars()
    name, subset, split = config.dataset, config.dataset_config, config.dataset_split
    say_reading(name)
    try:
        if config.streaming:
            splits = datasets.load_dataset(name, subset, streaming=True)
            train, known = splits[split], list(splits)
        else:
            train = datasets.load_dataset(name, subset, split=split)
            known = list(train.info.splits or [])
        held_out = next((s for s in VALIDATION_SPLITS if s in known and s != split.split("[")[0]), None)
        val = None
        if held_out:
            val = splits[held_out] if config.streaming else datasets.load_dataset(name, subset, split=held_out)
    except Exception as error:  # any library error: missing, unreachable, unsupported
        raise _hub_error(config, error) from error
    piece = Piece(name, "rows", 0, -1, 0, column=config.text_column)
    _check_features(train, piece)
    notice = _("training on the split {train!r}", train=split)
    if held_out:
        notice = _("training on the split {train!r}, validating on {val!r}", train=split, val=held_out)
    if config.streaming:
        marks = [f"{name} {subset} {s} {config.text_column}" for s in (split, held_out)]
        prints = [hashlib.sha256(mark.encode()).hexdigest()[:32] for mark in marks]
        return Sources(
            name, [], [], prints[0], prints[1], stream=(train, val), notice=notice, column=config.text_column
        )
    return Sources(
        name,
        _row_pieces(train, piece),
        _row_pieces(val, piece) if val is not None else [],
        f"{train._fingerprint} {config.text_column}",
        f"{val._fingerprint} {config.text_column}" if val is not None else "",
        notice=notice,
    )


def _check_features(rows: Dataset | IterableDataset, piece: Piece) -> None:
    """Raise InputError if the rows lack the column, or it does not hold text."""
    if rows.column_names is None:
        return
    check_column(piece, rows.column_names, repr(piece.source))
    feature = (rows.features or {}).get(piece.column)
    if feature is not None and getattr(feature, "dtype", "") not in ("string", "large_string"):
        raise not_text(piece, getattr(feature, "dtype", feature), repr(piece.source))


def _row_pieces(rows: Dataset, like: Piece) -> list[Piece]:
    each = (rows.size_in_bytes or rows.data.nbytes) // max(1, len(rows))
    starts = range(0, len(rows), ROWS)
    return [replace(like, source=rows, start=at, stop=min(at + ROWS, len(rows)), size=each * ROWS) for at in starts]


def _hub_error(config: Config, error: Exception) -> InputError:
    """Convert any error of the Hub's libraries to one message by its cause."""
    reason: Any = first_line(error).rstrip(".")
    if "script" in reason:
        key, advice = "dataset", _("loading scripts no longer run: use a copy of this dataset in Parquet")
    elif "BuilderConfig" in reason or "Config name is missing" in reason:
        key, advice = "dataset_config", _("set it to one that exists")
    elif isinstance(error, KeyError) or "split" in reason.lower():
        key = "dataset_split"
        advice = _("set it to one that exists (slices such as train[:1%] only without streaming)")
    else:
        key, advice = "dataset", _("check the name and the network, or give a local file or folder")
        reason = _("no such file or folder here, and the Hub did not give it: {reason}", reason=reason)
    return InputError(f"{key} = {getattr(config, key)!r}: {reason}\n    → {advice}")
