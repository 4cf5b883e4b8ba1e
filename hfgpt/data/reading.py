"""Read pieces as text, in the memory of a few parts, however long a line or document is.

In:  a :class:`~hfgpt.data.pieces.Piece`.
Out: its texts in order, as :class:`~hfgpt.data.pieces.Part` of about a million characters each.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, cast

import zstandard

from hfgpt.base.errors import InputError, first_line
from hfgpt.base.language import _
from hfgpt.data import pieces
from hfgpt.data.long_lines import LongLine, NotJson, WrongType, whole_characters
from hfgpt.data.pieces import Part, Piece, check_column, find_cut, not_text, open_parquet

if TYPE_CHECKING:
    from datasets import Dataset

DAMAGED = (OSError, EOFError, zlib.error, zstandard.ZstdError)
LONG = 8  # parts; a longer line or document is read in fragments
ROWS = 256  # table rows read at a time


class Fragment(str):
    """A part of a document that continues in the next text."""


def read(piece: Piece) -> Iterator[Part]:
    """Yield the texts of a piece in order, in the memory of a few parts.

    Raises:
        InputError: the file's content does not match its extension; the message names the file, the position and the
            fix.
    """
    readers: dict[str, Callable[[Piece], Iterator[Part]]] = {
        "text": _read_text,
        "jsonl": lambda piece: grouped(_json_texts(piece)),
        "parquet": lambda piece: grouped(_parquet_texts(piece)),
        "rows": lambda piece: grouped(_row_texts(piece)),
    }
    return readers[piece.kind](piece)


def grouped(texts: Iterable[str | None]) -> Iterator[Part]:
    """Group documents into parts of about a million characters, without missing and empty documents."""
    group: list[str] = []
    size, open_document = 0, False
    for text in _fragments(texts):
        if text or open_document:
            group.append(text or "")
            size += len(text or "")
        open_document = isinstance(text, Fragment)
        if size >= pieces.PART or open_document:
            yield Part(group, open_document)
            group, size = [], 0
    if group:
        yield Part(group)


def _fragments(texts: Iterable[str | None]) -> Iterator[str | None]:
    """Split long documents into fragments, since a tokenizer needs many bytes per input character."""
    for text in texts:
        at = 0
        while text and len(text) - at > LONG * pieces.PART and not isinstance(text, Fragment):
            cut = at + find_cut(text[at : at + 2 * pieces.PART])
            yield Fragment(text[at:cut])
            at = cut
        yield text[at:] if at and text else text


def sample(parts: Iterable[Part], limit: int) -> Iterator[str]:
    """Yield texts of at most `limit` characters in total."""
    for part in parts:
        for text in part.texts:
            yield text[:limit]
            limit -= len(text)
            if limit <= 0:
                return


# ---------------------------------------------------------------------------------------------------------------- text


def _read_text(piece: Piece) -> Iterator[Part]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, position, parts = "", piece.start, 0
    for raw in _chunks(piece):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(raw)
        except UnicodeDecodeError as error:
            raise _binary(piece, position - pending + error.start, raw) from None
        if "\0" in text:
            raise _binary(piece, position + raw.index(b"\0"), raw)
        if position == 0:
            text = text.removeprefix("\ufeff")  # the byte-order mark that some editors write
        position += len(raw)
        rest += text
        while len(rest) >= 2 * pieces.PART:
            cut = find_cut(rest)
            yield Part([rest[:cut]], open=True)
            rest, parts = rest[cut:], parts + 1
    if decoder.getstate()[0] and piece.ends:
        raise _binary(piece, position, b"")
    if rest or parts:
        yield Part([rest], open=not piece.ends)


def _chunks(piece: Piece) -> Iterator[bytes]:
    """Yield the decompressed bytes of a piece, at most two parts at a time."""
    path = str(piece.source)
    try:
        with open(path, "rb") as file:
            if path.lower().endswith(".gz"):
                with gzip.open(file) as unpacked:
                    yield from iter(lambda: unpacked.read(pieces.PART), b"")
            elif path.lower().endswith(".zst"):
                yield from _unpack_zst(file)
            else:
                file.seek(piece.start)
                yield from _stretch(file, piece.stop - piece.start)
    except DAMAGED as error:
        raise InputError(
            "dataset: {path!r} cannot be read: {reason}\n    → it may be damaged: get it again", path=path, reason=error
        ) from None


def _stretch(file: IO[bytes], left: int) -> Iterator[bytes]:
    while left:
        if not (raw := file.read(min(left, 2 * pieces.PART))):
            raise EOFError(_("it has become shorter since it was opened"))
        yield raw
        left -= len(raw)


ZST_INPUT = 1 << 10  # bytes; a hostile kilobyte decompresses to 32 MB, the most held at a time


def _unpack_zst(file: IO[bytes]) -> Iterator[bytes]:
    """Decompress frame by frame, since the library's reader accepts truncated files."""
    frame = None
    while raw := file.read(ZST_INPUT):
        while raw:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            text = frame.decompress(raw)
            yield from (text[at : at + pieces.PART] for at in range(0, len(text), pieces.PART))
            raw, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame:
        raise EOFError(_("the compressed file is truncated"))


def _binary(piece: Piece, position: int, raw: bytes) -> InputError:
    advice = _("give plain text, saved as UTF-8")
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        advice = _("it looks like UTF-16: save it as UTF-8")
    elif _is_gbk(raw):
        advice = _(
            "it looks like GBK (ANSI), the older Chinese encoding: save it as UTF-8, or run "
            "`iconv -f gb18030 -t utf-8 OLD.txt > NEW.txt`"
        )
    return InputError(
        "dataset: {path!r} is not UTF-8 text (at byte {position:,})\n    → {advice}",
        path=piece.source,
        position=position,
        advice=advice,
    )


def _is_gbk(raw: bytes) -> bool:
    """Whether bytes that are not UTF-8 read as Chinese in GB 2312, the common part of GBK.

    Its Chinese characters are two bytes above 0xA0. In a Western encoding a letter with an accent stands alone, so that
    its pair has a second byte below; in Shift-JIS most second bytes or the characters that they give are others.
    """
    text = codecs.getincrementaldecoder("gb18030")("replace").decode(raw)
    foreign = [character for character in text if ord(character) > 127]
    common = sum(_is_common(character) for character in foreign)
    return "\0" not in text and len(foreign) > 0 and common > 0.9 * len(foreign)


def _is_common(character: str) -> bool:
    """Whether a character is one of GB 2312's 3,755 most frequent Chinese ones, or punctuation."""
    encoded = character.encode("gb2312", "ignore")
    return len(encoded) == 2 and (b"\xb0\xa1" <= encoded <= b"\xd7\xf9" or character in "，。、；：？！（）《》“”—…·")


# --------------------------------------------------------------------------------------------------------------- jsonl


def _json_texts(piece: Piece) -> Iterator[str | None]:
    for position, line, rest in _lines(piece):
        if rest is not None:
            yield from _long_texts(piece, position, rest)
        elif line.strip():
            yield _json_text(piece, position, line)


def _lines(piece: Piece) -> Iterator[tuple[int, bytes, Iterator[bytes] | None]]:
    """Yield each line with the byte where it starts; a long line is an iterator over its bytes instead."""
    chunks, rest, position = _chunks(piece), b"", piece.start
    for raw in chunks:
        *lines, rest = (rest + raw).split(b"\n")
        for line in lines:
            yield position, line, None
            position += len(line) + 1
        if len(rest) > LONG * pieces.PART:
            long = _LongBytes(rest, chunks)
            yield position, b"", iter(long)
            position, rest = position + long.length, long.behind
    for line in rest.split(b"\n"):  # several, if a long line ended in the last chunk
        yield position, line, None
        position += len(line) + 1


class _LongBytes:
    """The bytes of a line longer than a chunk; `behind` holds what follows its newline."""

    def __init__(self, start: bytes, chunks: Iterator[bytes]) -> None:
        self._start, self._chunks = start, chunks
        self.length, self.behind = 1, b""  # the newline is counted

    def __iter__(self) -> Iterator[bytes]:
        self.length += len(self._start)
        for at in range(0, len(self._start), pieces.PART):
            yield self._start[at : at + pieces.PART]
        self._start = b""
        for raw in self._chunks:
            line, newline, self.behind = raw.partition(b"\n")
            self.length += len(line)
            yield line
            if newline:
                return


def _json_text(piece: Piece, position: int, line: bytes) -> str | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _not_json(piece, position, first_line(error)) from None
    if not isinstance(row, dict):
        raise InputError(
            "dataset: {line} is not a JSON object\n    → .jsonl holds one object a line, such as {example}",
            line=_line_label(piece, position),
            example=json.dumps({piece.column: "..."}),
        )
    if piece.column not in row:
        check_column(piece, row, _line_label(piece, position))
    text = row[piece.column]
    if text is not None and not isinstance(text, str):
        raise not_text(piece, type(text).__name__, _line_label(piece, position))
    return whole_characters(text) if text and b"\\u" in line else text


def _long_texts(piece: Piece, position: int, chunks: Iterator[bytes]) -> Iterator[str]:
    """Yield the text of one long line in fragments; the last one ends the document."""
    line = LongLine(chunks, piece.column)
    text = ""
    try:
        for more in line.fragments():
            text += more
            if len(text) > 2 * pieces.PART:
                cut = find_cut(text)
                yield Fragment(text[:cut])
                text = text[cut:]
    except NotJson as error:
        raise _not_json(piece, position, str(error)) from None
    except WrongType as error:
        raise not_text(piece, error, _line_label(piece, position)) from None
    except UnicodeDecodeError:
        raise _binary(piece, position, b"") from None
    check_column(piece, line.keys, _line_label(piece, position) if piece.column not in line.keys else "")
    yield text


def _not_json(piece: Piece, position: int, reason: str) -> InputError:
    return InputError(
        "dataset: {line} is not JSON ({reason})\n    → .jsonl holds one JSON object a line",
        line=_line_label(piece, position),
        reason=reason,
    )


def _line_label(piece: Piece, position: int) -> str:
    number = 1
    for raw in _chunks(replace(piece, start=0, stop=position)):
        number += raw[: max(0, position)].count(b"\n")
        position -= len(raw)
    return _("{path!r}, line {number:,}", path=piece.source, number=number)


# -------------------------------------------------------------------------------------------------------------- tables


def _parquet_texts(piece: Piece) -> Iterator[str | None]:
    with open_parquet(str(piece.source)) as file:
        rows = max(1, sum(file.metadata.row_group(i).num_rows for i in range(piece.start, piece.stop)))
        few = max(1, min(ROWS, rows * pieces.PART // max(1, piece.size)))  # one row at a time for long documents
        groups = list(range(piece.start, piece.stop))
        for batch in file.iter_batches(few, row_groups=groups, columns=[piece.column]):
            for value in batch.column(0):
                text: Any = value.as_py()
                if not isinstance(text, str | None):
                    raise not_text(piece, type(text).__name__)
                yield text


def _row_texts(piece: Piece) -> Iterator[str | None]:
    rows = cast("Dataset", piece.source)
    for at in range(piece.start, piece.stop, ROWS):
        yield from rows[at : min(at + ROWS, piece.stop)][piece.column]
