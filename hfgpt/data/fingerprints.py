"""Names for contents: what the caches of tokens and tokenizers are kept under.

In:  files, or the fingerprints of what a result was made from.
Out: hexadecimal digits that change with the content and with nothing else.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

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
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    memory = cache / "hfgpt" / "digests" / name
    if stat.st_size >= REMEMBERED_FROM and memory.exists():
        return memory.read_text()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if stat.st_size >= REMEMBERED_FROM:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary = memory.with_suffix(f".{secrets.token_hex(8)}")  # another machine may write the same one
        temporary.write_text(digest)
        os.replace(temporary, memory)
    return digest
