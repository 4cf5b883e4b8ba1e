"""From what `dataset` names to text: which files or rows there are, and how to read them in bounded memory.

In:  the config's `dataset`, `dataset_config`, `dataset_split`, `text_column`.
Out: :class:`Sources`: for each split a list of :class:`Piece`, small enough that many processes share one big file,
     each read by :func:`read` as a sequence of :class:`Part` of about a million characters; and :class:`TextStream`,
     which reads a split an epoch at a time and can go on from any place.

A piece of a text file ends where GPT-2's pre-tokenisation splits words anyway (after a letter, before a newline), so
that the tokens of the pieces, put together, are the tokens of the whole text.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import zstandard

from hfgpt.base.errors import InputError
from hfgpt.config import EMBEDDED_DATASET, Config

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


EMBEDDED = Path(__file__).parent / "shakespeare.txt.gz"

KINDS = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}

COMPRESSED = (".gz", ".zst")

ENDINGS = ".txt, .jsonl or .parquet (.txt and .jsonl also with .gz or .zst behind)"

PART = 1 << 20  # characters (or bytes) read at a time

WINDOW = 1 << 16  # how far back from there a place to cut is looked for

REMEMBERED_FROM = 64 << 20  # bytes; the digest of a larger file is kept, since reading it all again would take long

DAMAGED = (OSError, EOFError, zlib.error, zstandard.ZstdError)

VALIDATION_SPLITS = ("validation", "val", "valid", "test")


@dataclass(frozen=True)
class Piece:
    """A stretch of one split that is read in one go: [start, stop) counts bytes, row groups or rows.

    `size` is about how many bytes of text it holds; `ends` says whether a document ends with it.
    """

    source: str | Dataset
    kind: str
    start: int
    stop: int
    size: int
    ends: bool = True
    column: str = "text"


@dataclass(frozen=True)
class Part:
    """Some texts in order. Each is a document, except that the last goes on in the next part if `open`."""

    texts: list[str]
    open: bool = False


@dataclass(frozen=True)
class Sources:
    """The splits of a dataset. `val` is empty where the dataset has no validation split of its own.

    The fingerprints change with the content, not with its place. `stream` holds the splits instead where they are
    read from the Hub as they are used.
    """

    name: str
    train: list[Piece]
    val: list[Piece]
    train_fingerprint: str
    val_fingerprint: str
    stream: tuple[IterableDataset, IterableDataset | None] | None = None


def is_main() -> bool:
    """Whether this is the process that speaks, of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def find(config: Config, cache: Path) -> Sources:
    """What the config's `dataset` is, without reading more of it than needed.

    Args:
        config: the data group of its fields is read.
        cache: where the digests of large files are kept.

    Raises:
        InputError: it does not exist, cannot be read, or is of a kind that is not understood; says which and why.
    """
    name = config.dataset
    if name == EMBEDDED_DATASET:
        return _from_files(config, [EMBEDDED], [], cache)
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_files(config, *_split_by_name(path, _files_in(path, name)), cache)
    if path.is_file():
        return _from_files(config, [path], [], cache)
    if any(letter in name for letter in "*?["):
        paths = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not paths:
            raise InputError(f"dataset = {name!r}: no file matches\n    → check the pattern; {ENDINGS} are read")
        return _from_files(config, paths, [], cache)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or _kind(path):
        raise InputError(
            f"dataset = {name!r}: no such file or folder\n    → give 'shakespeare', a file, folder or glob of "
            f"{ENDINGS}, or a Hub id such as 'user/name'"
        )
    return _from_hub(config)


# --------------------------------------------------------------------------------------------------------------- files


def _kind(path: Path) -> str | None:
    """'text', 'jsonl' or 'parquet' by the file's ending; None for all others."""
    suffix = path.suffix.lower()
    packed = suffix in COMPRESSED
    kind = KINDS.get(Path(path.stem).suffix.lower() if packed else suffix)
    return None if packed and kind == "parquet" else kind


def _files_in(folder: Path, name: str) -> list[Path]:
    """All files below the folder that are text by their ending, sorted by path; hidden ones are left out."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and _kind(path)]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not found:
        raise InputError(f"dataset = {name!r}: the folder holds no text\n    → put files there that end in {ENDINGS}")
    return found


def _split_by_name(folder: Path, paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Files called train* and val* or validation* (or in folders of that name) are splits, where there are both."""

    def called(path: Path, names: str) -> bool:
        return re.match(rf"({names})([-_.]|$)", path.relative_to(folder).parts[0], re.IGNORECASE) is not None

    train = [path for path in paths if called(path, "train")]
    val = [path for path in paths if called(path, "val|valid|validation")]
    return (train, val) if train and val else (paths, [])


def _from_files(config: Config, train: list[Path], val: list[Path], cache: Path) -> Sources:
    kinds: dict[str, Path] = {}
    for path in [*train, *val]:
        if (kind := _kind(path)) is None:
            raise InputError(
                f"dataset = {config.dataset!r}: {str(path)!r} ends in {path.suffix or 'nothing'!r}; files must end in "
                f"{ENDINGS}\n    → rename it to .txt if it is plain text, else convert it"
            )
        kinds.setdefault(kind, path)
    if len(kinds) > 1:
        raise InputError(
            f"dataset = {config.dataset!r}: holds files of different kinds ({', '.join(map(str, kinds.values()))})"
            "\n    → choose one kind with a glob such as 'folder/*.txt'"
        )
    try:
        splits = [[piece for path in paths for piece in _pieces(path, config)] for paths in (train, val)]
        prints = [_fingerprint(paths, config, cache) for paths in (train, val)]
    except OSError as error:
        raise InputError(f"dataset = {config.dataset!r}: cannot be read: {error}") from None
    if not splits[0]:
        raise InputError(f"dataset = {config.dataset!r}: is empty\n    → give files with text in them")
    return Sources(config.dataset, splits[0], splits[1], prints[0], prints[1])


def _pieces(path: Path, config: Config) -> list[Piece]:
    """A file in stretches that can be read by themselves; none if it is empty."""
    kind, size = cast(str, _kind(path)), path.stat().st_size
    whole = Piece(str(path), kind, 0, -1, size, column=config.text_column)
    if kind == "parquet":
        return _row_groups(whole)
    if size == 0:
        return []
    if path.suffix.lower() in COMPRESSED:
        return [replace(whole, size=3 * size)]  # about what text compresses to
    with open(path, "rb") as file:
        place = _text_cut if kind == "text" else _line_start
        cuts = sorted({0, *(place(file, at) for at in range(PART, size - PART // 2, PART)), size})
    pieces = [replace(whole, start=a, stop=b, size=b - a) for a, b in pairwise(cuts)]
    return [replace(piece, ends=kind != "text" or piece.stop == size) for piece in pieces]


def _text_cut(file: IO[bytes], before: int) -> int:
    """The last place before this byte where a text can be cut."""
    start = max(0, before - WINDOW)
    file.seek(start)
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # keeps each byte, whatever it is
    text = decoder.decode(file.read(before - start))
    return start + len(text[: find_cut(text)].encode("utf-8", "surrogateescape"))


def _line_start(file: IO[bytes], after: int) -> int:
    """The first start of a line from this byte on."""
    file.seek(after - 1)
    file.readline()
    return file.tell()


_CUTS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r".*[^\W_](?=\r?\n)",  # letter or digit, newline: apart in GPT-2's and later pre-tokenisers
        r".*\S(?=[ \n])",  # a word's end: apart in GPT-2's
        r".*[^\W_](?=[.,;:!?，。；：！？、])",  # for writing without spaces
    )
]


def find_cut(text: str) -> int:
    """The last place where `text` may be cut without a change to its tokens; its end, where there is none near it."""
    start = max(0, len(text) - WINDOW)
    for pattern in _CUTS:
        if match := pattern.match(text, start):
            return match.end()
    return len(text)


def _row_groups(whole: Piece) -> list[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(whole.source)
    except pa.ArrowException as error:
        raise InputError(
            f"dataset: {whole.source!r} is no Parquet file that can be read: {str(error).splitlines()[0]}\n"
            "    → it may be damaged: get it again"
        ) from None
    with file:
        schema = file.schema_arrow
        _check_column(whole, schema.names)
        column = schema.field(whole.column).type
        if not (pa.types.is_string(column) or pa.types.is_large_string(column) or pa.types.is_dictionary(column)):
            raise _not_text(whole, str(column))
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    return [replace(whole, start=i, stop=i + 1, size=size) for i, size in enumerate(groups)]


def _check_column(piece: Piece, names: Iterable[str], where: str = "") -> None:
    if piece.column not in (names := list(names)):
        raise InputError(
            f"text_column = {piece.column!r}: {where or _label(piece)} has no such column; it has "
            f"{', '.join(map(repr, names))}\n    → set text_column to the one that holds the text"
        )


def _not_text(piece: Piece, kind: str, where: str = "") -> InputError:
    return InputError(
        f"text_column = {piece.column!r}: holds {kind} in {where or _label(piece)}, not text"
        "\n    → set text_column to the one that holds the text"
    )


def _label(piece: Piece) -> str:
    return repr(piece.source) if isinstance(piece.source, str) else "the dataset"


def _fingerprint(paths: list[Path], config: Config, cache: Path) -> str:
    """Of the files' content in order; while streaming, of their names and sizes, since all of it may be too much."""
    digest = hashlib.sha256(config.text_column.encode())
    for path in paths:
        known = f"{path.name} {path.stat().st_size}" if config.streaming else content_digest(path, cache)
        digest.update(f"{_kind(path)} {known}\n".encode())
    return digest.hexdigest()[:32]


def content_digest(path: Path, cache: Path) -> str:
    """SHA-256 of a file; a large one's is remembered for as long as the file is not touched."""
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    memory = cache / "hfgpt" / "digests" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if stat.st_size >= REMEMBERED_FROM and memory.exists():
        return memory.read_text()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if stat.st_size >= REMEMBERED_FROM:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary = memory.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest)
        os.replace(temporary, memory)
    return digest


# ------------------------------------------------------------------------------------------------------------- the Hub


def _from_hub(config: Config) -> Sources:
    """A dataset of the Hub, downloaded once into the cache of `datasets`, or read as it comes while streaming."""
    import datasets

    if not is_main():  # a download has its bars, once
        datasets.disable_progress_bars()
    name, subset, split = config.dataset, config.dataset_config, config.dataset_split
    try:
        if config.streaming:
            splits = datasets.load_dataset(name, subset, streaming=True)
            train, known = splits[split], list(splits)
        else:
            train = datasets.load_dataset(name, subset, split=split)
            known = list(train.info.splits or [])
        held = next((s for s in VALIDATION_SPLITS if s in known and s != split.split("[")[0]), None)
        val = None
        if held:
            val = splits[held] if config.streaming else datasets.load_dataset(name, subset, split=held)
    except Exception as error:  # whatever the libraries raise for what is missing, unreachable or not supported
        raise _hub_error(config, error) from error
    columns = train.column_names
    piece = Piece(name, "rows", 0, -1, 0, column=config.text_column)
    if columns is not None:
        _check_column(piece, columns, f"{name!r}")
        feature = (train.features or {}).get(config.text_column)
        if feature is not None and getattr(feature, "dtype", "") not in ("string", "large_string"):
            raise _not_text(piece, str(getattr(feature, "dtype", feature)), f"{name!r}")
    if config.streaming:
        marks = [f"{name} {subset} {s} {config.text_column}" for s in (split, held)]
        prints = [hashlib.sha256(mark.encode()).hexdigest()[:32] for mark in marks]
        return Sources(name, [], [], prints[0], prints[1], stream=(train, val))
    return Sources(
        name,
        _row_pieces(train, piece),
        _row_pieces(val, piece) if val is not None else [],
        f"{train._fingerprint} {config.text_column}",
        f"{val._fingerprint} {config.text_column}" if val is not None else "",
    )


def _row_pieces(rows: Dataset, like: Piece, count: int = 4096) -> list[Piece]:
    each = (rows.size_in_bytes or rows.data.nbytes) // max(1, len(rows))
    starts = range(0, len(rows), count)
    return [replace(like, source=rows, start=at, stop=min(at + count, len(rows)), size=each * count) for at in starts]


def _hub_error(config: Config, error: Exception) -> InputError:
    """The one message for whatever the Hub's libraries raise, by what it is about."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if "script" in reason:
        key, advice = "dataset", "loading scripts no longer run: use a copy of this dataset in Parquet"
    elif "BuilderConfig" in reason or "Config name is missing" in reason:
        key, advice = "dataset_config", "set it to one that exists"
    elif isinstance(error, KeyError) or "split" in reason.lower():
        key, advice = "dataset_split", "set it to one that exists (slices such as train[:1%] only without streaming)"
    else:
        key, advice = "dataset", "check the name and the network, or give a local file or folder"
        reason = f"no such file or folder here, and the Hub did not give it: {reason}"
    return InputError(f"{key} = {getattr(config, key)!r}: {reason}\n    → {advice}")


# ------------------------------------------------------------------------------------------------------------- reading


def read(piece: Piece) -> Iterator[Part]:
    """The texts of a piece, in order, in memory of a few parts.

    Raises:
        InputError: it is not what its name says; names the file, the place and the fix.
    """
    readers: dict[str, Callable[[Piece], Iterator[Part]]] = {
        "text": _read_text,
        "jsonl": lambda piece: grouped(_json_texts(piece)),
        "parquet": lambda piece: grouped(_parquet_texts(piece)),
        "rows": lambda piece: grouped(_row_texts(piece)),
    }
    return readers[piece.kind](piece)


def grouped(texts: Iterable[str | None]) -> Iterator[Part]:
    """Documents in parts of about a million characters; missing and empty ones are left out."""
    group: list[str] = []
    size = 0
    for text in texts:
        if text:
            group.append(text)
            size += len(text)
        if size >= PART:
            yield Part(group)
            group, size = [], 0
    if group:
        yield Part(group)


def sample(parts: Iterable[Part], limit: int) -> Iterator[str]:
    """Texts of at most `limit` characters in all."""
    for part in parts:
        for text in part.texts:
            yield text[:limit]
            limit -= len(text)
            if limit <= 0:
                return


def spread(pieces: list[Piece], limit: int) -> list[Piece]:
    """Every n-th piece, such that they hold about `limit` bytes in all: a sample of the whole of a corpus."""
    return pieces[:: max(1, -(-sum(piece.size for piece in pieces) // limit))]


def _read_text(piece: Piece) -> Iterator[Part]:
    path = str(piece.source)
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, position, parts = "", piece.start, 0
    for raw in _chunks(piece):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(raw)
        except UnicodeDecodeError as error:
            raise _binary(path, position - pending + error.start, raw) from None
        if "\0" in text:
            raise _binary(path, position + raw.index(b"\0"), raw)
        if position == 0:
            text = text.removeprefix("\ufeff")  # the mark that some editors put at the start of a file
        position += len(raw)
        rest += text
        if len(rest) >= 2 * PART:
            cut = find_cut(rest)
            yield Part([rest[:cut]], open=True)
            rest, parts = rest[cut:], parts + 1
    if decoder.getstate()[0] and piece.ends:
        raise _binary(path, position, b"")
    if rest or parts:
        yield Part([rest], open=not piece.ends)


def _chunks(piece: Piece) -> Iterator[bytes]:
    """The bytes of a piece, whatever its file is compressed with, at most two parts at a time."""
    path = str(piece.source)
    try:
        with open(path, "rb") as file:
            if path.lower().endswith(".gz"):
                with gzip.open(file) as unpacked:
                    yield from iter(lambda: unpacked.read(PART), b"")
            elif path.lower().endswith(".zst"):
                yield from _unpack_zst(file)
            else:
                file.seek(piece.start)
                yield from _stretch(file, piece.stop - piece.start)
    except DAMAGED as error:
        raise InputError(f"dataset: {path!r} cannot be read: {error}\n    → it may be damaged: get it again") from None


def _stretch(file: IO[bytes], left: int) -> Iterator[bytes]:
    while left:
        if not (raw := file.read(min(left, 2 * PART))):
            raise EOFError("it has become shorter since it was opened")
        yield raw
        left -= len(raw)


def _unpack_zst(file: IO[bytes]) -> Iterator[bytes]:
    """Frame by frame, since the library's own reader takes a file that is cut short for one that ends."""
    frame = None
    while raw := file.read(1 << 16):
        while raw:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            if text := frame.decompress(raw):
                yield text
            raw, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame:
        raise EOFError("compressed file ended before the end of its data")


def _binary(path: str, position: int, raw: bytes) -> InputError:
    utf16 = raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    advice = "it looks like UTF-16: save it as UTF-8" if utf16 else "give plain text, saved as UTF-8"
    return InputError(f"dataset: {path!r} is not UTF-8 text (at byte {position:,})\n    → {advice}")


def _json_texts(piece: Piece) -> Iterator[str | None]:
    for position, line in _lines(piece):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"dataset: {_line_label(piece, position)} is not JSON ({reason})\n"
                "    → .jsonl holds one JSON object a line"
            ) from None
        if not isinstance(row, dict):
            raise InputError(
                f"dataset: {_line_label(piece, position)} is no JSON object\n"
                f'    → .jsonl holds one object a line, such as {{"{piece.column}": "..."}}'
            )
        if piece.column not in row:
            _check_column(piece, row, _line_label(piece, position))
        text = row[piece.column]
        if text is not None and not isinstance(text, str):
            raise _not_text(piece, type(text).__name__, _line_label(piece, position))
        if text and b"\\u" in line:  # JSON can write half a surrogate pair, which is no character
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield text


def _lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Each line of a piece and the byte it starts at."""
    rest, position = b"", piece.start
    for raw in _chunks(piece):
        *lines, rest = (rest + raw).split(b"\n")
        for line in lines:
            yield position, line
            position += len(line) + 1
    yield position, rest


def _line_label(piece: Piece, position: int) -> str:
    number = 1
    for raw in _chunks(replace(piece, start=0, stop=position)):
        number += raw[: max(0, position)].count(b"\n")
        position -= len(raw)
    return f"{piece.source!r}, line {number:,}"


def _parquet_texts(piece: Piece) -> Iterator[str | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(piece.source) as file:
            groups = range(piece.start, piece.stop)
            for batch in file.iter_batches(256, row_groups=list(groups), columns=[piece.column]):
                texts: list[Any] = batch.column(0).to_pylist()
                if wrong := next((text for text in texts if not isinstance(text, str | None)), None):
                    raise _not_text(piece, type(wrong).__name__)
                yield from texts
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"dataset: {piece.source!r} cannot be read: {error}\n    → it may be damaged: get it again"
        ) from None


def _row_texts(piece: Piece) -> Iterator[str | None]:
    rows = cast("Dataset", piece.source)
    for at in range(piece.start, piece.stop, 256):
        yield from rows[at : min(at + 256, piece.stop)][piece.column]


# ----------------------------------------------------------------------------------------------------------- streaming

Place = dict[str, Any]  # of a part in an epoch, as JSON can hold it


class TextStream:
    """The parts of a split, read as they are needed, an epoch at a time.

    Local files come in an order that seed and epoch decide: text files as wholes, the pieces of .jsonl and .parquet
    files each by itself. The rows of a Hub dataset come in its own order.
    """

    def __init__(self, pieces: list[Piece], rows: IterableDataset | None, column: str, seed: int) -> None:
        self._pieces, self._rows, self._column, self._seed = pieces, rows, column, seed

    def parts(self, epoch: int | None, first: Place | None, place: Place | None) -> Iterator[tuple[Part, Place]]:
        """Each part of an epoch, with its place.

        Args:
            epoch: which; None for the order in which the split is stored.
            first: where the split begins; parts stored before it are left out (None: nowhere).
            place: where to go on reading (None: at the epoch's beginning).
        """
        if self._rows is not None:
            yield from self._row_parts(place or first or {"rows": None})
            return
        first = first or {"piece": 0, "part": 0}
        order = self._order(epoch, first["piece"])
        at = order.index(place["piece"]) if place else 0
        for i in order[at:]:
            skip = max(p["part"] if p and p["piece"] == i else 0 for p in (first, place))
            for number, part in enumerate(read(self._pieces[i])):
                if number >= skip:
                    yield part, {"piece": i, "part": number}

    def _order(self, epoch: int | None, first: int) -> list[int]:
        """The numbers of the pieces from `first` on, in the order of an epoch; those of one text file stay in order."""
        units: dict[Any, list[int]] = {}
        for i, piece in enumerate(self._pieces[first:], first):
            units.setdefault(piece.source if piece.kind == "text" else i, []).append(i)
        groups = list(units.values())
        if epoch is not None:
            groups = [groups[g] for g in np.random.RandomState((self._seed, epoch)).permutation(len(groups))]
        return [i for group in groups for i in group]

    def _row_parts(self, place: Place) -> Iterator[tuple[Part, Place]]:
        assert self._rows is not None
        self._rows.load_state_dict(place["rows"])
        for part in grouped(row[self._column] for row in self._rows):
            yield part, place
            place = {"rows": self._rows.state_dict()}
