"""Files split into pieces that many processes can read in parallel.

In:  a file of text, .jsonl or Parquet, and the column that holds the text.
Out: :class:`Piece`: a range of about a million characters, for :func:`hfgpt.data.reading.read`.

A piece of a text file ends where GPT-2's pre-tokenisation splits words anyway (after a letter, before a newline), so
the pieces' tokens, concatenated, are the tokens of the whole text.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from numpy.typing import NDArray

from hfgpt.base.errors import InputError, first_line
from hfgpt.base.files import sha256
from hfgpt.base.language import _, listed, plural

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

KINDS = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
COMPRESSED = (".gz", ".zst")
# Endings of other files, which no Hub id has.
OTHERS = (".bin", ".csv", ".tsv", ".json", ".md", ".text", ".log", ".html", ".xml", ".pdf", ".docx", ".epub",
          ".npy", ".npz", ".pt", ".arrow", ".zip", ".tar", ".tgz", ".xz", ".bz2")  # fmt: skip
PART = 1 << 20  # characters (or bytes) read at a time
WINDOW = 1 << 16  # how far back from there to search for a cut
SHOWN = 20  # columns listed in a message


@dataclass(frozen=True)
class Piece:
    """A range of one split that is read at once: [start, stop) counts bytes, row groups or rows.

    `size` is the approximate bytes of text in it; `ends` says whether a document ends with it.
    """

    source: str | Dataset
    kind: str
    start: int
    stop: int
    size: int
    ends: bool = True
    column: str = "text"

    @property
    def label(self) -> str:
        """The file's or dataset's name in messages."""
        return repr(self.source) if isinstance(self.source, str) else _("the dataset")


@dataclass(frozen=True)
class Part:
    """Texts in order. Each is a document, but if `open`, the last one continues in the next part."""

    texts: list[str]
    open: bool = False


def endings() -> str:
    """Return the file endings that can be read, as a list in a sentence."""
    compressed = (kind + packed for kind in (".txt", ".jsonl") for packed in COMPRESSED)
    return _("{plain} ({compressed})", plain=listed(KINDS), compressed=listed(compressed))


def kind_of(path: Path) -> str | None:
    """Return 'text', 'jsonl' or 'parquet' from the file's extension; None for all others."""
    suffix = path.suffix.lower()
    compressed = suffix in COMPRESSED
    kind = KINDS.get(Path(path.stem).suffix.lower() if compressed else suffix)
    return None if compressed and kind == "parquet" else kind


def names_a_file(name: str) -> bool:
    """Whether `dataset` has the ending of a file, so that it is not a Hub id."""
    return Path(name).suffix.lower() in (*KINDS, *COMPRESSED, *OTHERS)


def cut_file(path: Path, column: str) -> list[Piece]:
    """Split a file into independent pieces; an empty file does not have any.

    Raises:
        InputError: a Parquet file is damaged, or its column does not hold text.
        OSError: the file cannot be read.
    """
    kind, size = kind_of(path), path.stat().st_size
    assert kind is not None, "the caller has chosen files by their ending"
    whole = Piece(str(path), kind, 0, -1, size, column=column)
    if kind == "parquet":
        return _row_groups(whole)
    if size == 0:
        return []
    if path.suffix.lower() in COMPRESSED:
        return [replace(whole, size=3 * size)]  # a typical compression ratio of text
    with open(path, "rb") as file:
        cuts = [0, *(_text_cuts(file, size) if kind == "text" else _line_cuts(file, size)), size]
    pieces = [replace(whole, start=a, stop=b, size=b - a) for a, b in pairwise(sorted(set(cuts)))]
    return [replace(piece, ends=kind != "text" or piece.stop == size) for piece in pieces]


def _text_cuts(file: IO[bytes], size: int) -> Iterator[int]:
    """Return, for every million bytes, the last position before them where a text can be cut."""
    for before in range(PART, size - PART // 2, PART):
        start = max(0, before - WINDOW)
        file.seek(start)
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # keeps invalid bytes
        text = decoder.decode(file.read(before - start))
        yield start + len(text[: find_cut(text)].encode("utf-8", "surrogateescape"))


def _line_cuts(file: IO[bytes], size: int) -> Iterator[int]:
    """Return, for every million bytes, the first start of a line at or after them. Reads each byte at most once."""
    cut = 0
    for after in range(PART, size - PART // 2, PART):
        if after <= cut:  # the line before the last cut extends beyond this position
            continue
        file.seek(after - 1)
        cut = after - 1
        while raw := file.read(PART):
            if (end := raw.find(b"\n")) >= 0:
                cut += end + 1
                break
            cut += len(raw)
        yield cut


_CUTS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r".*[^\W_](?=\r?\n)",  # letter or digit, then newline: split by GPT-2's and later pre-tokenisers
        r".*\S(?=[ \n])",  # end of a word: split by GPT-2's
        r".*[^\W_](?=[.,;:!?，。；：！？、])",  # for scripts without spaces
    )
]


def find_cut(text: str) -> int:
    """Return the last position where a cut does not change the tokens; otherwise the text's end."""
    start = max(0, len(text) - WINDOW)
    for pattern in _CUTS:
        if match := pattern.match(text, start):
            return match.end()
    return len(text)


# ------------------------------------------------------------------------------------------------------------- Parquet


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file.

    Raises:
        InputError: the file is damaged, or is not a Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as raw, pq.ParquetFile(raw) as file:  # pyarrow itself opens only UTF-8 file names
            yield file
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        reason = first_line(error)
        raise InputError(
            "dataset: {path!r} cannot be read as a Parquet file: {reason}\n    → it may be damaged: get it again",
            path=path,
            reason=reason,
        ) from None


def _row_groups(whole: Piece) -> list[Piece]:
    assert isinstance(whole.source, str)
    with open_parquet(whole.source) as file:
        schema = file.schema_arrow
        check_column(whole, schema.names)
        if (times := schema.names.count(whole.column)) > 1:
            raise InputError(
                "text_column = {column!r}: {file} has {n} columns of this name\n"
                "    → rename them, or set text_column to another one",
                column=whole.column,
                file=whole.label,
                n=times,
            )
        column = schema.field(whole.column).type
        if not _holds_text(column):
            raise not_text(whole, str(column))
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    return [replace(whole, start=i, stop=i + 1, size=size) for i, size in enumerate(groups)]


def _holds_text(column: pa.DataType) -> bool:
    """Whether a column of this type may hold text; dictionary values are checked when they are read."""
    import pyarrow as pa

    types = pa.types
    return bool(
        types.is_string(column)
        or types.is_large_string(column)
        or types.is_string_view(column)
        or types.is_dictionary(column)
    )


# ------------------------------------------------------------------------------------------------------------- columns


def check_column(piece: Piece, names: Iterable[str], where: str = "") -> None:
    """Raise InputError if a piece's column is not among these names."""
    if piece.column in (known := list(names)):
        return
    shown = listed(repr(name[:80]) for name in known[:SHOWN])
    if more := len(known) - SHOWN if len(known) > SHOWN else 0:
        shown += plural(" and one more", " and {n} more", more)
    raise InputError(
        "text_column = {column!r}: {where} has no such column; it has {names}\n"
        "    → set text_column to the one that holds the text",
        column=piece.column,
        where=where or piece.label,
        names=shown,
    )


def not_text(piece: Piece, kind: Any, where: str = "") -> InputError:
    """Return the error for a column that does not hold text."""
    return InputError(
        "text_column = {column!r}: holds {kind} in {where}, not text\n"
        "    → set text_column to the one that holds the text",
        column=piece.column,
        kind=str(kind)[:80],
        where=where or piece.label,
    )


def text_size(pieces: Iterable[Piece]) -> int:
    """Return the approximate bytes of text in the pieces."""
    return sum(piece.size for piece in pieces)


def spread(pieces: list[Piece], limit: int) -> list[Piece]:
    """Return every n-th piece, about `limit` bytes in all: a sample across the whole corpus."""
    return pieces[:: max(1, -(-text_size(pieces) // limit))]


# --------------------------------------------------------------------------------------------------------- fingerprints

FORMAT = "2"  # part of every cache key; raise it if the same text would be tokenised differently
REMEMBERED_FROM = 64 << 20  # bytes; a larger file's digest is cached, since reading the file again would take long


def key_of(*parts: str) -> str:
    """Return the key of a result whose inputs have these keys: 32 hexadecimal digits."""
    return hashlib.sha256("\n".join((FORMAT, *parts)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def fingerprint_of(paths: Iterable[Path], column: str, cache: Path, *, by_name: bool = False) -> str:
    """Return the fingerprint of texts, from the files' content in order.

    Args:
        cache: folder for the digests of large files.
        by_name: use names and sizes instead, if the content may be too large to read.
    """
    digest = hashlib.sha256(column.encode())
    for path in paths:
        known = f"{path.name} {path.stat().st_size}" if by_name else content_digest(path, cache)
        digest.update(f"{kind_of(path)} {known}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def content_digest(path: Path, cache: Path) -> str:
    """Return a file's SHA-256; a large file's is cached until the file changes."""
    return _remembered(path, "", cache, lambda: sha256(path))


def highest_token(path: Path, tokens: NDArray[Any], cache: Path) -> int:
    """Return the highest token in a file; a large file's is cached until the file changes."""
    return int(_remembered(path, f"highest {tokens.dtype}", cache, lambda: str(int(tokens.max()))))


def _remembered(path: Path, what: str, cache: Path, compute: Callable[[], str]) -> str:
    """Return a fact about a file's content: computed, or cached if the file is large."""
    stat = path.stat()
    if stat.st_size < REMEMBERED_FROM:
        return compute()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}{what}"
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    memory = cache / "hfgpt" / "digests" / name
    with suppress(OSError):
        if known := memory.read_text():  # a power cut may leave an empty file
            return known
    fact = compute()
    with suppress(OSError):  # a cache that another user made, or a full disk: the next run computes it again
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary = memory.with_suffix(f".{secrets.token_hex(8)}")  # another machine may write the same entry
        temporary.write_text(fact)
        os.replace(temporary, memory)
    return fact
