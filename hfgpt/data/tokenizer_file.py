"""Untrusted tokenizer.json files: checked before use, with the library's panics turned into messages.

In:  a folder with a tokenizer.json, or a block of code that encodes text.
Out: nothing, or an InputError that says what is wrong with the file.

The tokenizers library is written in Rust. If a pattern needs too many attempts on a text, it panics, which `except
Exception` misses. Such patterns repeat something that itself repeats, as in ``(a+)+``.
"""

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfgpt.base.errors import InputError, first_line
from hfgpt.base.language import strerror

LONGEST = 10_000  # characters that a decoder or a normalizer inserts; longer ones at every letter would fill the memory

LARGEST = 2**28  # bytes; the file of a 256,000-token vocabulary has about 35 MB


def check_file(path: Path) -> None:
    """Check the size, structure and patterns of a tokenizer.json; a missing file passes.

    Raises:
        InputError: the file is too large, is not JSON, or has a pattern that may take forever on some texts.
    """
    if not path.is_file():
        return
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(
                "{path}: is larger than any tokenizer ({size:,} bytes)", path=path, size=path.stat().st_size
            )
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("{path}: cannot be read: {reason}", path=path, reason=strerror(error)) from None
    except (ValueError, RecursionError):
        raise InputError("{path}: is not the description of a tokenizer", path=path) from None
    if not isinstance(parsed, dict):
        raise InputError("{path}: is not the description of a tokenizer", path=path)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for pattern in _patterns(parsed.get(part)):
            if repeats_a_repeat(pattern):
                raise InputError(
                    "{path}: the pattern {pattern!r} repeats what itself repeats, which can take forever on some texts",
                    path=path,
                    pattern=pattern[:80],
                )
    if (length := max(map(len, _inserted(parsed)), default=0)) > LONGEST:
        raise InputError(
            "{path}: inserts a text of {length:,} characters; {most:,} are the most",
            path=path, length=length, most=LONGEST,
        )  # fmt: skip


class _StandardError:
    """Captures file descriptor 2 while tokenizers may panic, since Rust reports every panic there.

    Several threads may be inside at once. The last one to leave writes the captured output back, unless it was a panic.
    Every sampled token is decoded inside, so the file that captures is opened once.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._panicked = threading.Lock(), 0, False
        self._file, self._process = -1, 0  # descriptor of the capturing file, and the process that opened it
        self._original: int | None = None  # what descriptor 2 was before

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                with contextlib.suppress(OSError):  # without descriptor 2 or disk space, Rust's report stays visible
                    if self._process != os.getpid():  # a forked process would share the file's position
                        with tempfile.TemporaryFile() as file:
                            self._file, self._process = os.dup(file.fileno()), os.getpid()
                    original = os.dup(2)
                    os.dup2(self._file, 2)
                    self._original = original

    def leave(self, panicked: bool) -> None:
        with self._lock:
            self._inside -= 1
            self._panicked |= panicked
            if self._inside or self._original is None:
                return
            os.dup2(self._original, 2)
            os.close(self._original)
            self._original = None
            if written := os.lseek(self._file, 0, os.SEEK_CUR):
                os.lseek(self._file, 0, os.SEEK_SET)
                output = os.read(self._file, written)
                os.lseek(self._file, 0, os.SEEK_SET)
                if not self._panicked:
                    with contextlib.suppress(OSError):
                        os.write(2, output)
            self._panicked = False


_standard_error = _StandardError()


@contextmanager
def panics_as_messages() -> Iterator[None]:
    """Turn a panic of the tokenizers library inside the block into an InputError, without Rust's report."""
    panicked = False
    _standard_error.enter()
    try:
        yield
    except BaseException as error:
        panicked = type(error).__name__ == "PanicException"  # pyo3 does not export the exception class
        if not panicked:
            raise
        raise InputError("the tokenizer cannot read this text: {reason}", reason=str(error)[:200]) from None
    finally:
        _standard_error.leave(panicked)


@contextmanager
def faults_as_messages() -> Iterator[None]:
    """Turn any error of encoding text inside the block (pattern, normalizer or model) into an InputError."""
    try:
        with panics_as_messages():
            yield
    except InputError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise InputError(
            "tokenizer: cannot encode the text: {reason}\n"
            "    → its pattern or vocabulary is at fault: use another tokenizer",
            reason=reason[:200],
        ) from None


def _patterns(part: Any) -> Iterator[str]:
    """Yield every regular expression in a part of a tokenizer.json."""
    return _strings(part, ("Regex",))


def _inserted(parsed: dict[str, Any]) -> Iterator[str]:
    """Yield the texts that a tokenizer's parts put in place of others, and its added tokens.

    The vocabulary's own tokens may be long: training merges a row of a million dashes into one.
    """
    for part in ("normalizer", "pre_tokenizer", "decoder", "added_tokens"):
        yield from _strings(parsed.get(part), ("content", "prepend", "replacement"))


def _strings(part: Any, keys: Sequence[str]) -> Iterator[str]:
    """Yield every string with one of these keys in a part of a tokenizer.json."""
    parts = [part]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            yield from (part[key] for key in keys if isinstance(part.get(key), str))
            parts += part.values()
        elif isinstance(part, list):
            parts += part


def repeats_a_repeat(pattern: str) -> bool:
    """Whether a group with an unbounded repeat is itself repeated without bound, and can backtrack."""
    # For each open group: whether the enclosing group has a repeat so far, and whether the group is atomic.
    groups, repeating = list[tuple[bool, bool]](), False
    place, length = 0, len(pattern)
    while place < length:
        letter = pattern[place]
        place += 1
        if letter == "\\":
            place += 1
        elif letter == "[":
            place = _end_of_class(pattern, place)
        elif letter == "(":
            groups.append((repeating, pattern.startswith("?>", place)))
            repeating = False
        elif letter == ")" and groups:
            inside, (repeating, atomic) = repeating, groups.pop()
            if inside and not atomic and _unbounded(pattern, place):
                return True
            repeating |= inside
        elif pattern[place - 1 : place + 1] in ("*+", "++", "?+"):
            place += 1
        elif _unbounded(pattern, place - 1):
            repeating = True
    return False


def _unbounded(pattern: str, place: int) -> bool:
    """Whether an unbounded quantifier that can backtrack stands here: *, +, {2,}, lazy ones too."""
    rest = pattern[place : place + 24]
    if rest[:1] in ("*", "+"):
        return rest[1:2] != "+"  # possessive
    head, closed, _after = rest[1:].partition("}")
    return rest[:1] == "{" and bool(closed) and head.endswith(",") and head[:-1].isdigit()


def _end_of_class(pattern: str, place: int) -> int:
    """Return the position after the bracket that closes a character class; classes may nest."""
    depth, start = 1, place
    while place < len(pattern) and depth:
        letter = pattern[place]
        if letter == "\\":
            place += 1
        elif letter == "[":
            depth += 1
        elif letter == "]" and not (depth == 1 and pattern[start:place] in ("", "^")):
            depth -= 1
        place += 1
    return place
