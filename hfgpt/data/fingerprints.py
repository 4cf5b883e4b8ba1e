"""Names for contents: what the caches of tokens and tokenizers are kept under.

In:  files, or the fingerprints of what a result was made from.
Out: hexadecimal digits that change with the content and with nothing else.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hfgpt.data.pieces import kind_of

FORMAT = "2"  # part of every cache key; to be raised when the same text would be tokenised otherwise

REMEMBERED_FROM = 64 << 20  # bytes; the digest of a larger file is kept, since reading it all again would take long


def key_of(*parts: str) -> str:
    """The key of something that is made from things with these keys: 32 hexadecimal digits."""
    return hashlib.sha256("\n".join((FORMAT, *parts)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def of_files(paths: Iterable[Path], column: str, cache: Path, *, by_name: bool = False) -> str:
    """The fingerprint of texts: of the files' content in order.

    Args:
        paths: the files.
        column: the one that holds the text.
        cache: where the digests of large files are kept.
        by_name: of names and sizes instead, where all of the content may be too much to read.
    """
    digest = hashlib.sha256(column.encode())
    for path in paths:
        known = f"{path.name} {path.stat().st_size}" if by_name else content_digest(path, cache)
        digest.update(f"{kind_of(path)} {known}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def content_digest(path: Path, cache: Path) -> str:
    """SHA-256 of a file; a large one's is remembered for as long as the file is not touched."""

    def digest() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return _remembered(path, "", cache, digest)


def highest_token(path: Path, tokens: NDArray[Any], cache: Path) -> int:
    """The highest number in a file of tokens; a large one's is remembered for as long as the file is not touched."""
    return int(_remembered(path, f"highest {tokens.dtype}", cache, lambda: str(int(tokens.max()))))


def _remembered(path: Path, what: str, cache: Path, compute: Callable[[], str]) -> str:
    """A fact about a file's content: computed, or remembered if the file is large."""
    stat = path.stat()
    if stat.st_size < REMEMBERED_FROM:
        return compute()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}{what}"
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    memory = cache / "hfgpt" / "digests" / name
    if memory.exists():
        return memory.read_text()
    fact = compute()
    memory.parent.mkdir(parents=True, exist_ok=True)
    temporary = memory.with_suffix(f".{secrets.token_hex(8)}")  # another machine may write the same one
    temporary.write_text(fact)
    os.replace(temporary, memory)
    return fact
