"""Fingerprints of content: the keys of the caches of tokens and tokenizers.

In:  files, or the fingerprints of a result's inputs.
Out: hexadecimal digits that change only with the content.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hfgpt.base.files import sha256
from hfgpt.data.pieces import kind_of

FORMAT = "2"  # part of every cache key; raise it if the same text would be tokenised differently

REMEMBERED_FROM = 64 << 20  # bytes; a larger file's digest is cached, since reading the file again would take long


def key_of(*parts: str) -> str:
    """Return the key of a result whose inputs have these keys: 32 hexadecimal digits."""
    return hashlib.sha256("\n".join((FORMAT, *parts)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def of_files(paths: Iterable[Path], column: str, cache: Path, *, by_name: bool = False) -> str:
    """Return the fingerprint of texts, from the files' content in order.

    Args:
        paths: the files.
        column: the text column.
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
